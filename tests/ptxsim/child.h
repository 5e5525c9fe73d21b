// What ends the process is tested in a child.
#pragma once

#include <string>

#include <sys/wait.h>
#include <unistd.h>

// What a child says on stderr before it ends; its status to *status. Behind cmocka.h.
inline std::string last_words(void (*body)(int), int argument, int *status)
{
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        body(argument);
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char piece[512];
    for (ssize_t n; (n = read(ends[0], piece, sizeof piece)) > 0;) said.append(piece, (size_t)n);
    close(ends[0]);
    assert_int_equal(waitpid(child, status, 0), child);
    return said;
}
