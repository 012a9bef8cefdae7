// Everything on the screen that a person could point at, with its box in pixels of the picture.
// Whether an element counts is decided in elements.py; here is only what the browser knows.
(options) => {
  const view = window.visualViewport, scale = view.scale * window.devicePixelRatio;
  const pixels = (r) => [(r.left - view.offsetLeft) * scale, (r.top - view.offsetTop) * scale,
                         (r.right - view.offsetLeft) * scale, (r.bottom - view.offsetTop) * scale];
  const tidy = (text) => (text || "").replace(/\s+/g, " ").trim();
  const segments = new Intl.Segmenter(undefined, {granularity: "grapheme"});
  const graphemes = (text) => [...segments.segment(text)].map((s) => s.segment).filter((s) => s.trim());

  const CONTROL = {
    A: (e) => (e.hasAttribute("href") ? "link" : null), BUTTON: () => "button", SELECT: () => "list",
    TEXTAREA: () => "field", SUMMARY: () => "button",
    INPUT: (e) => ({checkbox: "checkbox", radio: "radio button", range: "slider", button: "button", submit: "button",
                    reset: "button", image: "button", file: "button", color: "button", hidden: null})[e.type] ??
                  (e.type === "hidden" ? null : "field"),
  };
  const ARIA = {button: "button", link: "link", checkbox: "checkbox", switch: "switch", radio: "radio button",
                tab: "tab", menuitem: "menu item", option: "option", slider: "slider", textbox: "field",
                searchbox: "field", combobox: "list", gridcell: "cell"};
  const roleOf = (e) => {
    const given = ARIA[e.getAttribute("role")];
    if (given) return given;
    const made = CONTROL[e.tagName]?.(e);
    if (made) return made;
    return e.hasAttribute("onclick") && e.tagName !== "BODY" ? "button" : null;
  };
  const textRole = (e) => {
    if (/^H[1-6]$/.test(e.tagName) || e.getAttribute("role") === "heading") return "heading";
    if (e.closest("td,th")) return "cell";
    return "text";
  };
  const iconic = (e) => e.tagName === "svg" || e.tagName === "IMG" || e.getAttribute("role") === "img" ||
    ((e.tagName === "I" || e.tagName === "SPAN") && !e.textContent.trim() && e.className &&
     !["none", "normal"].includes(getComputedStyle(e, "::before").content));
  const drawn = (e) => {  // a picture that did not load, and an icon of a font that is not there, show nothing
    if (e.tagName === "IMG") return e.complete && e.naturalWidth > 0;
    if (e.tagName !== "I" && e.tagName !== "SPAN") return true;
    const style = getComputedStyle(e, "::before"), sign = style.content;
    if (!/[\ue000-\uf8ff]|[\u{f0000}-\u{ffffd}]/u.test(sign) && !e.dataset.glyph) return true;
    const family = style.fontFamily.split(",")[0].replace(/["']/g, "").trim();
    return [...document.fonts].some((f) => f.family.replace(/["']/g, "") === family && f.status === "loaded");
  };
  const fontName = (e) => {  // an icon font says in its class what the icon shows
    const form = /^fa-(fw|lg|xs|sm|li|spin|pulse|inverse|border|stack|pull|flip|rotate)/;
    const found = [...e.classList].find((c) => /^(fa|bi|ti|cil|cib|mdi|icon)-[a-z-]+$/.test(c) && !form.test(c));
    return found ? found.replace(/^[a-z]+-/, "").replace(/-/g, " ") : "";
  };
  const labelled = (e) => {
    const ids = (e.getAttribute("aria-labelledby") || "").split(/\s+/).filter(Boolean);
    return tidy(ids.map((id) => document.getElementById(id)?.innerText).filter(Boolean).join(" "));
  };
  const nameOf = (e) => tidy(e.getAttribute("aria-label")) || labelled(e) ||
    tidy([...(e.labels || [])].map((l) => l.innerText).join(" ")) || tidy(e.getAttribute("alt")) ||
    tidy(e.getAttribute("title")) || tidy(e.querySelector?.(":scope > title")?.textContent) || "";
  const shown = (e) => {
    if (e.tagName === "SELECT") return tidy(e.selectedOptions[0]?.text);
    if (e.tagName === "TEXTAREA") return tidy(e.value || e.placeholder);
    if (e.tagName === "INPUT") {
      if (["checkbox", "radio", "range", "color", "file", "image"].includes(e.type)) return "";
      return e.type === "password" && e.value ? "" : tidy(e.value || e.placeholder);
    }
    return tidy(e.innerText);
  };
  const visible = (e) => e.checkVisibility({opacityProperty: true, visibilityProperty: true});

  const found = [], kept = new Map();  // element -> what was found
  const all = document.body.querySelectorAll("*");
  const skipped = new Set(["SCRIPT", "STYLE", "NOSCRIPT", "TEMPLATE", "OPTION", "OPTGROUP", "BR", "HR", "IFRAME"]);
  for (const e of all) {
    if (skipped.has(e.tagName) || (e.ownerSVGElement && e.tagName !== "svg")) continue;
    const role = roleOf(e);
    let kind = role && "control";
    if (!kind && iconic(e)) kind = "icon";
    if (!kind && [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) kind = "text";
    if (!kind) continue;
    let above = e.parentElement;
    while (above && !kept.has(above)) above = above.parentElement;
    const outer = above && kept.get(above);
    const text = kind === "icon" ? "" : shown(e);
    if (outer && kind === "icon" && !outer.text) continue;  // a button that only shows this icon
    if (outer && text && outer.text === text) continue;     // the words of a button are the button
    let name = nameOf(e), icon = kind === "icon", blank = icon && !drawn(e);
    if (kind === "control" && !text) {
      const picture = e.querySelector("svg,img,[role=img],i,span");
      icon = Boolean(picture);
      blank = picture && !drawn(picture);
      if (!name && picture) name = nameOf(picture) || fontName(picture);
    }
    if (kind === "icon" && !name) name = fontName(e);
    const row = {e, kind, role: role || (icon ? (e.tagName === "IMG" ? "image" : "icon") : textRole(e)), text, name, icon, blank};
    kept.set(e, row);
    found.push(row);
  }

  const clip = (e, r) => {  // what scrolling boxes around it leave of a rectangle
    let {left, top, right, bottom} = r;
    for (let p = e.parentElement; p && p !== document.body && p !== document.documentElement; p = p.parentElement) {
      const style = getComputedStyle(p);
      if (style.overflowX === "visible" && style.overflowY === "visible") continue;
      const q = p.getBoundingClientRect();
      if (style.overflowX !== "visible") { left = Math.max(left, q.left); right = Math.min(right, q.right); }
      if (style.overflowY !== "visible") { top = Math.max(top, q.top); bottom = Math.min(bottom, q.bottom); }
    }
    return {left, top, right, bottom};
  };
  const rectOf = (row) => {
    if (row.kind !== "text") return row.e.getBoundingClientRect();
    const range = document.createRange(), walker = document.createTreeWalker(row.e, NodeFilter.SHOW_TEXT);
    let [left, top, right, bottom] = [Infinity, Infinity, -Infinity, -Infinity];
    while (walker.nextNode()) {
      if (!walker.currentNode.data.trim()) continue;
      range.selectNodeContents(walker.currentNode);
      const r = range.getBoundingClientRect();
      if (!r.width) continue;
      [left, top] = [Math.min(left, r.left), Math.min(top, r.top)];
      [right, bottom] = [Math.max(right, r.right), Math.max(bottom, r.bottom)];
    }
    return right > left ? {left, top, right, bottom} : {left: 0, top: 0, right: 0, bottom: 0};
  };
  const characters = (row) => {
    if (!row.text || ["INPUT", "TEXTAREA", "SELECT"].includes(row.e.tagName)) return null;
    const walker = document.createTreeWalker(row.e, NodeFilter.SHOW_TEXT);
    const raw = [], range = document.createRange();
    while (walker.nextNode()) {
      const node = walker.currentNode;
      if (!node.parentElement.getClientRects().length) continue;
      for (const part of segments.segment(node.data)) {
        if (!part.segment.trim()) continue;
        range.setStart(node, part.index);
        range.setEnd(node, part.index + part.segment.length);
        const r = range.getClientRects()[0];
        if (r && r.width && r.height) raw.push([part.segment, ...pixels(r)]);
      }
    }
    const seen = graphemes(row.text);  // as styles show it, in capitals for one
    if (seen.length !== raw.length) return null;
    return raw.map((c, n) => [seen[n], ...c.slice(1)]);
  };

  const elements = found.map((row) => {
    const {e} = row, rect = rectOf(row), cut = clip(e, rect);
    const width = rect.right - rect.left, height = rect.bottom - rect.top;
    const facts = {box: pixels(rect), role: row.role, kind: row.kind, text: row.text, name: row.name, icon: row.icon};
    facts.visible = width > 0 && height > 0 && !row.blank && visible(e);
    if (!facts.visible) return facts;
    const style = getComputedStyle(e);
    facts.cut = cut.left - rect.left > 1 || cut.top - rect.top > 1 || rect.right - cut.right > 1 ||
      rect.bottom - cut.bottom > 1 ||
      (style.textOverflow === "ellipsis" && style.overflowX !== "visible" && e.scrollWidth > e.clientWidth);
    const x = (rect.left + rect.right) / 2, y = (rect.top + rect.bottom) / 2;
    const own = (t) => t === e || e.contains(t);
    facts.hit = own(document.elementFromPoint(x, y));
    facts.covered = !facts.hit || [[-1, -1], [1, -1], [-1, 1], [1, 1]].some(([dx, dy]) => {
      const t = document.elementFromPoint(x + dx * width / 4, y + dy * height / 4);
      return t && !own(t) && !t.contains(e);
    });
    const state = {};
    if ("checked" in e && ["checkbox", "radio"].includes(e.type)) state.checked = e.checked;
    const pressed = e.getAttribute("aria-checked") ?? e.getAttribute("aria-pressed");
    if (pressed === "true" || pressed === "false") state.checked = pressed === "true";
    if (e.getAttribute("aria-selected") === "true" || e.hasAttribute("aria-current")) state.selected = true;
    if (e.disabled || e.getAttribute("aria-disabled") === "true") state.disabled = true;
    if (e.tagName === "INPUT" && facts.role === "field" && e.value && e.type !== "password") state.value = tidy(e.value);
    facts.state = state;
    const cell = e.closest("td");
    if (cell && cell.cellIndex > 0 && row.kind === "text") {
      const heads = cell.closest("table").querySelectorAll("thead th");
      facts.row = tidy(cell.parentElement.cells[0].innerText);
      facts.column = tidy(heads[cell.cellIndex]?.innerText);
    }
    if (options.characters) facts.characters = characters(row);
    return facts;
  });
  const seen = {x: view.pageLeft, y: view.pageTop, width: view.width, height: view.height, scale: view.scale};
  return {title: tidy(document.title), elements, seen, scale};
}
