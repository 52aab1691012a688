// Every text that is seen and whose contrast to what is behind it is under 4.5, with its contrast.
() => {
    const parse = (text) => {
        const found = text.match(/[\d.]+/g).map(Number), scale = text.startsWith("color(srgb") ? 255 : 1;
        return [...found.slice(0, 3).map((part) => part * scale), found[3] ?? 1];
    };
    const over = (top, under) => [...top.slice(0, 3).map((part, at) => part * top[3] + under[at] * (1 - top[3])), 1];
    const linear = (part) => (part / 255 <= 0.03928 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4);
    const light = ([red, green, blue]) => 0.2126 * linear(red) + 0.7152 * linear(green) + 0.0722 * linear(blue);
    const behind = (element) => {
        const layers = [];
        for (let one = element; one; one = one.parentElement) {
            layers.push(parse(getComputedStyle(one).backgroundColor));
            if (layers.at(-1)[3] === 1) break;
        }
        return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
    };
    const seen = (element) => {
        const box = element.getBoundingClientRect(), style = getComputedStyle(element);
        return box.width > 1 && box.height > 1 && style.visibility !== "hidden" && style.opacity !== "0";
    };
    const pale = [];
    const look = (element, text, part) => {
        const back = behind(element), front = over(parse(getComputedStyle(element, part).color), back);
        const [more, less] = [light(front), light(back)].sort((a, b) => b - a);
        const contrast = (more + 0.05) / (less + 0.05);
        if (contrast < 4.5) pale.push(`${contrast.toFixed(2)}: ${text.trim().slice(0, 40)}`);
    };
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement, text = texts.currentNode.data;
        if (text.trim() && !element.closest("script, style, noscript, svg") && seen(element)) look(element, text);
    }
    for (const field of document.querySelectorAll("input, textarea")) {
        if (!seen(field) || ["radio", "checkbox", "range"].includes(field.type)) continue;
        if (field.value) look(field, field.value);
        else if (field.placeholder) look(field, field.placeholder, "::placeholder");
    }
    return pale;
}
