/* The part of cJSON that base/ and model/ call: see ../README.md. */
#pragma once

#include <stdbool.h>
#include <stddef.h>

enum {
    cJSON_False = 1, cJSON_True = 2, cJSON_NULL = 4, cJSON_Number = 8, cJSON_String = 16,
    cJSON_Array = 32, cJSON_Object = 64, cJSON_Raw = 128,
};

typedef int cJSON_bool;
typedef struct cJSON {
    struct cJSON *next, *prev, *child; /* prev of the first child: the last one */
    int type;
    char *valuestring;
    int valueint;
    double valuedouble;
    char *string; /* its name in an object */
} cJSON;

cJSON *cJSON_ParseWithLength(const char *text, size_t n);
cJSON *cJSON_ParseWithLengthOpts(const char *text, size_t n, const char **end, cJSON_bool whole);
void cJSON_Delete(cJSON *item);
char *cJSON_Print(const cJSON *item);
char *cJSON_PrintUnformatted(const cJSON *item);
void cJSON_free(void *p);

cJSON_bool cJSON_IsBool(const cJSON *i);
cJSON_bool cJSON_IsTrue(const cJSON *i);
cJSON_bool cJSON_IsNull(const cJSON *i);
cJSON_bool cJSON_IsNumber(const cJSON *i);
cJSON_bool cJSON_IsString(const cJSON *i);
cJSON_bool cJSON_IsArray(const cJSON *i);
cJSON_bool cJSON_IsObject(const cJSON *i);

int cJSON_GetArraySize(const cJSON *array);
cJSON *cJSON_GetArrayItem(const cJSON *array, int i);
cJSON *cJSON_GetObjectItem(const cJSON *object, const char *name);
cJSON *cJSON_GetObjectItemCaseSensitive(const cJSON *object, const char *name);
#define cJSON_ArrayForEach(item, array) \
    for (item = (array) ? (array)->child : NULL; item; item = item->next)

cJSON *cJSON_CreateNull(void);
cJSON *cJSON_CreateTrue(void);
cJSON *cJSON_CreateFalse(void);
cJSON *cJSON_CreateBool(cJSON_bool value);
cJSON *cJSON_CreateNumber(double value);
cJSON *cJSON_CreateString(const char *text);
cJSON *cJSON_CreateRaw(const char *text);
cJSON *cJSON_CreateArray(void);
cJSON *cJSON_CreateObject(void);
cJSON *cJSON_CreateDoubleArray(const double *values, int n);
cJSON *cJSON_CreateStringArray(const char *const *texts, int n);

cJSON_bool cJSON_AddItemToArray(cJSON *array, cJSON *item);
cJSON_bool cJSON_AddItemToObject(cJSON *object, const char *name, cJSON *item);
/* The new item, or NULL. */
cJSON *cJSON_AddBoolToObject(cJSON *object, const char *name, cJSON_bool value);
cJSON *cJSON_AddNumberToObject(cJSON *object, const char *name, double value);
cJSON *cJSON_AddStringToObject(cJSON *object, const char *name, const char *text);
cJSON *cJSON_AddRawToObject(cJSON *object, const char *name, const char *text);
cJSON *cJSON_AddArrayToObject(cJSON *object, const char *name);
cJSON *cJSON_AddObjectToObject(cJSON *object, const char *name);
