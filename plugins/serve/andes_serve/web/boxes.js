// Boxes in answers: <|box_start|>(x0,y0),(x1,y1)<|box_end|>, in thousandths of the picture's sides.

const BOX = /<\|box_start\|>\s*\((\d+)\s*,\s*(\d+)\)\s*,\s*\((\d+)\s*,\s*(\d+)\)\s*<\|box_end\|>/g;

export function boxesOf(text) {
  return [...text.matchAll(BOX)].map((m) => m.slice(1, 5).map(Number));
}

/** The text with each box as its number, as it is drawn. */
export function numbered(text) {
  let count = 0;
  return text.replace(BOX, () => `[${++count}]`);
}

/** Draws boxes over a picture (an element of class "shown") and lists them below a turn. */
export function draw(shown, list, boxes) {
  for (const old of shown.querySelectorAll(".box")) old.remove();
  list.replaceChildren();
  boxes.forEach(([x0, y0, x1, y1], number) => {
    const box = document.createElement("div");
    box.className = "box";
    Object.assign(box.style, {
      left: `${x0 / 10}%`, top: `${y0 / 10}%`, width: `${(x1 - x0) / 10}%`, height: `${(y1 - y0) / 10}%`,
    });
    const name = document.createElement("span");
    name.textContent = number + 1;
    box.append(name);
    shown.append(box);
    const item = document.createElement("li");
    item.textContent = `(${x0}, ${y0}) to (${x1}, ${y1})`;
    list.append(item);
  });
}
