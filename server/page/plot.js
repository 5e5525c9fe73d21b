/* Lines over time or steps, and bars, as SVG. */
import {el, svg} from "./dom.js";

const LEFT = 62, RIGHT = 10, TOP = 8, BOTTOM = 20, HEIGHT = 190;
const COLOURS = ["one", "two", "three", "four"];

/* Round numbers from low to high, about n of them: 1, 2 or 5 times a power of ten of `unit`, at
 * least `least` units apart. */
function ticks(low, high, n, unit, least) {
    const raw = Math.max((high - low) / n / unit, least);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = unit * power * ([1, 2, 5].find((m) => m * power >= raw) ?? 10);
    const found = [];
    for (let at = Math.ceil(low / step); at <= high / step; at++) found.push(at * step);
    return found;
}

/* Of many points, those of each pixel that stand out: the lowest and the highest. */
function thinned(points, width) {
    if (points.length <= 2 * width) return points;
    const size = points.length / width, kept = [];
    for (let begin = 0; begin < points.length; begin += size) {
        const bucket = points.slice(Math.floor(begin), Math.floor(begin + size));
        bucket.sort((a, b) => a[1] - b[1]);
        kept.push(...[bucket[0], bucket.at(-1)].sort((a, b) => a[0] - b[0]));
    }
    return kept;
}

/* The last point at or before x, or the first. */
const pointAt = (points, x) => points.findLast((point) => point[0] <= x) ?? points[0];

/* A plot of several lines in one frame. words.x, words.y: values as text; words.at: an x, in the
 * legend; zero: the axis begins there; xUnit, yUnit(high): what ticks are round in. draw() takes
 * [{name, points: [[x, y], ...]}, ...], each by rising x. The legend has the last values, or those
 * under the pointer. */
export class Plot {
    constructor(box, {label, words, zero = false, xUnit = 1, yUnit = () => 1}) {
        Object.assign(this, {label, words, zero, xUnit, yUnit, lines: []});
        this.legend = el("ul", {class: "legend"});
        this.frame = svg("svg", {role: "img", height: HEIGHT});
        box.replaceChildren(this.legend, this.frame);
        this.frame.addEventListener("pointermove", (event) => this.point(event));
        this.frame.addEventListener("pointerleave", () => this.point(null));
        new ResizeObserver(() => this.draw(this.lines)).observe(box);
    }

    draw(lines) {
        this.lines = lines;
        this.width = Math.max(this.frame.clientWidth, 2 * LEFT);
        this.scale(lines.flatMap((line) => line.points));
        this.cursor = svg("line", {class: "cursor", y1: TOP, y2: HEIGHT - BOTTOM, opacity: 0});
        this.frame.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
        this.frame.replaceChildren(...this.axes(),
            ...lines.map((line, i) => this.line(line.points, COLOURS[i])), this.cursor);
        this.tell(Infinity);
        this.frame.setAttribute("aria-label", `${this.label}: ${this.legend.textContent}`);
    }

    scale(points) {
        const range = (at) => points.reduce(([low, high], point) =>
            [Math.min(low, point[at]), Math.max(high, point[at])], [Infinity, -Infinity]);
        this.empty = points.length === 0;
        [this.x0, this.x1] = this.empty ? [0, 1] : range(0);
        [this.y0, this.y1] = this.empty ? [0, 1] : range(1);
        if (this.zero) this.y0 = Math.min(0, this.y0);
        if (this.x1 === this.x0) this.x1 += this.xUnit;
        const room = (this.y1 - this.y0) * 0.06 || Math.abs(this.y1) * 0.1 || 1;
        this.y1 += room;
        if (!this.zero) this.y0 -= room;
    }

    span() { return this.width - LEFT - RIGHT; }
    x(value) { return LEFT + (value - this.x0) / (this.x1 - this.x0) * this.span(); }
    y(value) { return TOP + (this.y1 - value) / (this.y1 - this.y0) * (HEIGHT - TOP - BOTTOM); }

    axes() {
        if (this.empty) return [svg("text", {x: LEFT, y: HEIGHT / 2}, "nothing yet")];
        const text = (value, props) => svg("text", props, value);
        const parts = [];
        for (const value of ticks(this.y0, this.y1, 4, this.yUnit(this.y1), 1e-12)) {
            const y = this.y(value);
            parts.push(svg("line", {class: "axis", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y}),
                text(this.words.y(value), {x: LEFT - 6, y: y + 4, "text-anchor": "end"}));
        }
        for (const value of ticks(this.x0, this.x1, Math.min(8, this.width / 80), this.xUnit, 1))
            parts.push(text(this.words.x(value),
                {x: this.x(value), y: HEIGHT - 5, "text-anchor": "middle"}));
        return parts;
    }

    line(points, colour) {
        const at = thinned(points, this.width).map(([x, y]) =>
            [this.x(x).toFixed(1), this.y(y).toFixed(1)]);
        if (at.length === 1)
            return svg("circle", {class: colour, r: 3, cx: at[0][0], cy: at[0][1]});
        return svg("path", {class: colour, d: at.length ? `M${at.join("L")}` : ""});
    }

    tell(x) {
        const entries = this.lines.map(({name, points}, i) => points.length > 0
            && el("li", {}, mark(COLOURS[i]), `${name} ${this.words.y(pointAt(points, x)[1])}`));
        const where = this.empty ? "\u00a0" : this.words.at(Math.min(x, this.x1));
        this.legend.replaceChildren(...entries.filter(Boolean), el("li", {class: "hint"}, where));
    }

    point(event) {
        this.cursor.setAttribute("opacity", event && !this.empty ? 1 : 0);
        if (!event || this.empty) return this.tell(Infinity);
        const at = event.clientX - this.frame.getBoundingClientRect().left;
        const x = this.x0 + (at - LEFT) / this.span() * (this.x1 - this.x0);
        const inside = Math.min(Math.max(x, this.x0), this.x1);
        for (const end of ["x1", "x2"]) this.cursor.setAttribute(end, this.x(inside));
        return this.tell(inside);
    }
}

/* What a colour stands for. */
export const mark = (colour) => svg("svg", {class: "mark", viewBox: "0 0 8 8", "aria-hidden": true},
    colour && svg("rect", {width: 8, height: 8, rx: 2, class: colour}));

/* A bar of parts beside each other, [class, size] each, on a track, of `whole` in all; a tick at
 * `peak`. The numbers stand beside it. */
export function bar(parts, whole, {track = whole, peak, height = 12} = {}) {
    const scale = (n) => 100 * Math.max(0, n) / Math.max(whole, 1);
    const node = svg("svg",
        {viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", height, "aria-hidden": "true"},
        svg("rect", {class: "track", width: scale(track), height}));
    let at = 0;
    for (const [name, size] of parts) {
        node.append(svg("rect", {class: name, x: scale(at), width: scale(size), height}));
        at += Math.max(0, size);
    }
    if (peak > 0)
        node.append(svg("rect", {class: "peak", x: scale(peak) - 0.5, width: 0.5, height}));
    return node;
}
