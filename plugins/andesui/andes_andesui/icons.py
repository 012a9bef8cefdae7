"""Icons, drawn here: a name and what to draw in a square of 24 units."""

from __future__ import annotations

ICONS = {
    "search": '<circle cx="10" cy="10" r="6"/><path d="M15 15l6 6"/>',
    "menu": '<path d="M3 6h18M3 12h18M3 18h18"/>',
    "close": '<path d="M5 5l14 14M19 5L5 19"/>',
    "back": '<path d="M20 12H4M11 5l-7 7 7 7"/>',
    "next": '<path d="M4 12h16M13 5l7 7-7 7"/>',
    "previous": '<path d="M19 5v14L8 12zM5 5v14"/>',
    "add": '<path d="M12 4v16M4 12h16"/>',
    "remove": '<path d="M4 12h16"/>',
    "home": '<path d="M3 11l9-8 9 8M6 9v11h12V9M10 20v-6h4v6"/>',
    "profile": '<circle cx="12" cy="8" r="4"/><path d="M4 21c0-9 16-9 16 0"/>',
    "settings": '<circle cx="12" cy="12" r="3"/><circle cx="12" cy="12" r="7"/>'
    '<path d="M12 2v3M12 19v3M2 12h3M19 12h3M5 5l2 2M17 17l2 2M19 5l-2 2M7 17l-2 2"/>',
    "delete": '<path d="M4 7h16M9 7V4h6v3M6 7l1 14h10l1-14M10 11v6M14 11v6"/>',
    "edit": '<path d="M4 20l1-5L16 4l4 4L9 19zM14 6l4 4"/>',
    "favourite": '<path d="M12 20C-4 9 7-1 12 7c5-8 16 2 0 13z"/>',
    "star": '<path d="M12 3l3 6 6 1-5 4 2 7-6-4-6 4 2-7-5-4 6-1z"/>',
    "share": '<circle cx="6" cy="12" r="3"/><circle cx="18" cy="5" r="3"/><circle cx="18" cy="19" r="3"/>'
    '<path d="M9 11l6-4M9 13l6 4"/>',
    "download": '<path d="M12 3v12M7 10l5 5 5-5M4 20h16"/>',
    "upload": '<path d="M12 16V4M7 9l5-5 5 5M4 20h16"/>',
    "camera": '<path d="M3 7h5l2-3h4l2 3h5v13H3z"/><circle cx="12" cy="13" r="4"/>',
    "gallery": '<path d="M3 4h18v16H3zM3 17l6-6 4 4 3-3 5 5"/><circle cx="16" cy="8" r="1.5"/>',
    "play": '<path d="M7 4v16l13-8z"/>',
    "pause": '<path d="M8 4v16M16 4v16"/>',
    "volume": '<path d="M3 9v6h4l6 5V4L7 9zM16 8c3 2 3 6 0 8M18 5c5 4 5 10 0 14"/>',
    "microphone": '<rect x="9" y="3" width="6" height="11" rx="3"/><path d="M5 11c0 9 14 9 14 0M12 18v4"/>',
    "call": '<path d="M5 3l4 1 1 5-2 2c1 2 3 4 5 5l2-2 5 1 1 4c-2 4-18-2-17-14z"/>',
    "mail": '<path d="M3 5h18v14H3zM3 6l9 7 9-7"/>',
    "send": '<path d="M3 11L21 3l-7 18-3-8z"/>',
    "messages": '<path d="M3 4h18v12H10l-5 5v-5H3zM7 8h10M7 12h6"/>',
    "notifications": '<path d="M5 17c3-3 0-12 7-12s4 9 7 12zM10 20h4M12 2v3"/>',
    "calendar": '<path d="M3 5h18v16H3zM3 10h18M8 2v5M16 2v5"/>',
    "clock": '<circle cx="12" cy="12" r="9"/><path d="M12 6v6l4 3"/>',
    "cart": '<path d="M2 4h3l3 11h10l3-8H6"/><circle cx="9" cy="19" r="1.5"/><circle cx="17" cy="19" r="1.5"/>',
    "lock": '<rect x="5" y="11" width="14" height="10"/><path d="M8 11V8c0-6 8-6 8 0v3"/>',
    "view": '<path d="M2 12c6-9 14-9 20 0-6 9-14 9-20 0z"/><circle cx="12" cy="12" r="3"/>',
    "link": '<path d="M10 14c-3-3 0-6 2-8s7-1 7 2-2 4-3 5M14 10c3 3 0 6-2 8s-7 1-7-2 2-4 3-5"/>',
    "attach": '<path d="M19 10l-8 8c-5 4-9-1-6-5l9-8c4-3 6 1 4 3l-8 8c-2 1-3-1-2-2l6-6"/>',
    "folder": '<path d="M3 5h6l2 3h10v12H3z"/>',
    "file": '<path d="M6 2h8l5 5v15H6zM14 2v5h5M9 13h7M9 17h7"/>',
    "place": '<path d="M12 22C0 8 7 2 12 2s12 6 0 20z"/><circle cx="12" cy="9" r="3"/>',
    "language": '<circle cx="12" cy="12" r="9"/><path d="M3 12h18M12 3c-5 6-5 12 0 18M12 3c5 6 5 12 0 18"/>',
    "dark": '<path d="M14 3c-14 2-13 18 0 18 3 0 6-2 7-5-8 2-12-7-7-13z"/>',
    "filter": '<path d="M3 4h18l-7 9v7l-4-3v-4z"/>',
    "refresh": '<path d="M19 8A8 8 0 1 0 20 14M20 3v6h-6"/>',
    "more": '<circle cx="12" cy="5" r="1.5"/><circle cx="12" cy="12" r="1.5"/><circle cx="12" cy="19" r="1.5"/>',
    "help": '<circle cx="12" cy="12" r="9"/><path d="M9 10c0-5 7-4 6 0-1 2-3 2-3 4M12 17v1"/>',
    "information": '<circle cx="12" cy="12" r="9"/><path d="M12 11v6M12 7v1"/>',
    "chart": '<path d="M3 21h18M6 21v-8M12 21V5M18 21V10"/>',
    "print": '<path d="M7 8V3h10v5M7 17H3V8h18v9h-4M7 14h10v7H7z"/>',
    "copy": '<path d="M8 8h12v13H8zM5 16H3V3h12v2"/>',
    "wallet": '<path d="M3 6h16v14H3zM3 6l12-3v3M15 11h6v4h-6z"/>',
    "bookmark": '<path d="M6 3h12v18l-6-5-6 5z"/>',
    "done": '<path d="M4 13l5 5L20 6"/>',
}
"""What an icon does -> its shapes."""

PURPOSES = {
    "search": "look for something", "menu": "open the menu", "close": "close this", "back": "go back",
    "next": "go forward", "previous": "go to the one before", "add": "add something", "remove": "take one away",
    "home": "go to the start page", "profile": "see your profile", "settings": "change settings",
    "delete": "delete this", "edit": "change the text", "favourite": "say that you like it", "star": "rate it",
    "share": "share it with others", "download": "save it to this device", "upload": "put a file online",
    "camera": "take a picture", "gallery": "look at pictures", "play": "start playing", "pause": "stop for a moment",
    "volume": "make it louder or quieter", "microphone": "speak", "call": "phone somebody", "mail": "read mail",
    "send": "send what you have written", "messages": "open the conversation", "notifications": "see what is new",
    "calendar": "choose a day", "clock": "see the time", "cart": "see what you are about to buy", "lock": "lock it",
    "view": "see it", "link": "copy the address", "attach": "attach a file", "folder": "open the folder",
    "file": "open the document", "place": "see where it is", "language": "choose another language",
    "dark": "switch to dark colours", "filter": "see only some of the entries", "refresh": "load it again",
    "more": "see more options", "help": "get help", "information": "learn more about it", "chart": "see the figures",
    "print": "print it", "copy": "copy it", "wallet": "see your money", "bookmark": "keep it for later",
    "done": "confirm it",
}  # fmt: skip
"""What somebody wants who presses the icon: "Which icon do you press to …?"."""


def drawn(name: str, stroke: float, filled: bool, round_ends: bool) -> str:
    """An icon as inline SVG in the colour of the text around it, as large as the text's `--icon`."""
    ends, joins = ("round", "round") if round_ends else ("butt", "miter")
    fill = "currentColor" if filled and name in SOLID else "none"
    style = f'fill="{fill}" stroke="currentColor" stroke-width="{stroke}"'
    style += f' stroke-linecap="{ends}" stroke-linejoin="{joins}"'
    return f'<svg class="icon" viewBox="0 0 24 24" {style}>{ICONS[name]}</svg>'


SOLID = {"play", "favourite", "star", "bookmark", "place", "dark", "filter", "folder", "previous", "send", "more"}
"""Icons that stay themselves when their inside is filled."""
