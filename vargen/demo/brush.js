// A brush over a picture: its value has a letter for each cell, 1 where the picture is to be repainted.
let painting = null, last = null, cursor = 0, keyed = false;
const brush = () => element.querySelector(".vg-brush");
const cells = () => [...element.querySelectorAll(".vg-cells i")];
const side = () => Math.round(Math.sqrt(cells().length));
const on = (cell) => cell.classList.contains("vg-on");

function dab(x, y, reach) {
    const all = cells(), n = side();
    for (let row = Math.max(0, y - reach); row <= Math.min(n - 1, y + reach); row++)
        for (let column = Math.max(0, x - reach); column <= Math.min(n - 1, x + reach); column++)
            all[row * n + column].classList.toggle("vg-on", painting);
}

function place(event) {
    const box = brush().getBoundingClientRect(), n = side();
    const at = (part, whole) => Math.min(n - 1, Math.max(0, Math.floor((part / whole) * n)));
    return [at(event.clientX - box.left, box.width), at(event.clientY - box.top, box.height)];
}

function stroke(event) {
    const [x, y] = place(event), [left, top] = last || [x, y];
    const steps = Math.max(Math.abs(x - left), Math.abs(y - top), 1);
    for (let step = 0; step <= steps; step++)
        dab(Math.round(left + ((x - left) * step) / steps), Math.round(top + ((y - top) * step) / steps), 1);
    last = [x, y];
}

function commit() {
    const next = cells().map((cell) => (on(cell) ? "1" : "0")).join("");
    painting = last = null;
    if (next !== props.value) props.value = next;  // drawn anew from it
}

element.addEventListener("pointerdown", (event) => {
    if (event.button || !event.target.closest(".vg-brush")) return;
    event.preventDefault();
    const [x, y] = place(event);
    painting = !on(cells()[y * side() + x]);
    stroke(event);
});
addEventListener("pointermove", (event) => painting !== null && !keyed && stroke(event));
addEventListener("pointerup", () => painting !== null && !keyed && commit());
addEventListener("pointercancel", () => painting !== null && !keyed && commit());
element.addEventListener("keydown", (event) => {
    const moves = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
    const n = side(), all = cells(), move = moves[event.key];
    if (!event.target.closest(".vg-brush") || !(move || event.key === " ")) return;
    event.preventDefault();
    if (move) {
        const x = Math.min(n - 1, Math.max(0, (cursor % n) + move[0]));
        const y = Math.min(n - 1, Math.max(0, Math.floor(cursor / n) + move[1]));
        cursor = y * n + x;
    } else {
        keyed = true;
        painting = !on(all[cursor]);
        dab(cursor % n, Math.floor(cursor / n), 0);
        commit();
        keyed = false;
    }
    setTimeout(() => {
        brush().focus();
        cells().forEach((cell, at) => cell.classList.toggle("vg-at", at === cursor));
    });
});
