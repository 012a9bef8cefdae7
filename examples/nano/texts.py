"""Questions and answers of every task, as templates: one place, so that the tokenizer knows them too."""

from __future__ import annotations

import re

WHERE = (
    "Where is {name}?", "Find {name}.", "Click on {name}.", "Tap {name}.", "Point at {name}.", "Open {name}.",
    "Give the box of {name}.", "Locate {name} on the screen.", "Which place shows {name}?", "Select {name}.",
    "I want to press {name}. Where is it?", "Show me {name}.",
)  # fmt: skip
WHAT_IS_AT = (
    "What is at {box}?", "Name the element at {box}.", "Which text stands at {box}?", "Read the text in {box}.",
    "What does {box} say?", "What is written at {box}?",
)  # fmt: skip
READ = ("Read the text.", "What is written here?", "Transcribe the line.", "What does the picture say?", "Read this.")
READ_ALL = ("Read all the text, line by line.", "Transcribe the page.", "Write down everything that is written here.")
DESCRIBE = ("Describe the screen.", "What does this screen show?", "Which elements are on this page?")
DESCRIBE_PICTURE = ("Describe the picture.", "What does the picture show?", "What can be seen?")
PLACE = (
    "Where would you tap to {act}?", "Where do I go to {act}?", "Which element lets me {act}?", "How do I {act} here?",
    "I would like to {act}. Where?",
)  # fmt: skip
PRESENT = ("Is there {name} on the screen?", "Can you see {name}?", "Does the page show {name}?", "Is {name} visible?")
SHAPE = (
    "What shape is in the picture?", "Which shape is shown?", "What is the shape?", "Name the shape in the image.",
)  # fmt: skip
SHAPE_COLOUR = (
    "What colour is the {shape}?", "Which color does the {shape} have?", "What is the colour of the {shape}?",
    "Tell me the color of the {shape}.",
)  # fmt: skip
SHAPE_THERE = ("Is there a {shape}?", "Does the picture contain a {shape}?", "Is a {shape} present?")
COLOUR_THERE = ("Is there anything {colour}?", "Is a {colour} shape present?", "Does the image contain {colour}?")
COUNT = ("How many {shapes} are there?", "Count the {shapes}.", "What is the number of {shapes}?")
DIGIT = ("Which digit is shown?", "What number is this?", "Read the handwritten digit.", "What digit is in the image?")
CHART = (
    "What is the value of {name}?", "How large is {name}?", "Which bar is the highest?", "Which one is the lowest?",
    "What does the chart show for {name}?", "What is the difference between {name} and {other}?", "What is the title?",
    "How many bars are there?", "Is {name} larger than {other}?", "What is the sum of all values?",
)  # fmt: skip
TWO = (
    "Which picture shows {name}, the first or the second?", "Do both pictures show the same?",
    "What is different between the two pictures?", "Compare the two pictures.",
)  # fmt: skip
SCENE = ("What does the photo show?", "What is in this photo?", "Name the object in the picture.")
WORDS = [
    "red",
    "green",
    "blue",
    "yellow",
    "orange",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
    "grey",
    "gray",
    "teal",
    "cyan",
    "magenta",
    "circle",
    "square",
    "rectangle",
    "triangle",
    "star",
    "pentagon",
    "hexagon",
    "ellipse",
    "diamond",
    "cross",
    "circles",
    "squares",
    "rectangles",
    "triangles",
    "stars",
    "yes",
    "no",
    "first",
    "second",
    "both",
    "neither",
    "left",
    "right",
    "top",
    "bottom",
    "centre",
    "center",
    "above",
    "below",
    "next",
    "to",
    "between",
    "picture",
    "image",
    "screen",
    "page",
    "button",
    "link",
    "icon",
    "field",
    "menu",
    "tab",
    "card",
    "heading",
    "text",
    "checkbox",
    "switch",
    "list",
    "image",
    "it",
    "is",
    "are",
    "there",
    "the",
    "a",
    "an",
    "of",
    "in",
    "on",
    "at",
    "and",
    "or",
    "with",
    "from",
    "to",
    "shows",
    "contains",
    "has",
    "desktop",
    "phone",
    "light",
    "dark",
    "large",
    "small",
    "background",
    "not",
    "none",
    "title",
    "value",
    "bar",
    "line",
    "chart",
    "sum",
    "difference",
    "largest",
    "smallest",
    "answer",
    "because",
    "so",
    "then",
    "therefore",
    "each",
    "all",
    "step",
    "total",
    "equals",
    "plus",
    "minus",
    "times",
    "divided",
    "call",
    "function",
    "name",
    "arguments",
    "alarm",
    "timer",
    "message",
    "contact",
    "weather",
    "music",
    "volume",
    "play",
    "stop",
    "set",
    "send",
    "open",
    "search",
    "navigate",
    "remind",
    "note",
    "<think>",
    "</think>",
    "wait",
    "check",
    "compute",
    "carry",
    "digit",
    "remaining",
]
BOX = "<|box_start|>({},{}),({},{})<|box_end|>"
_BOX, _NUMBER = re.compile(r"<\|box_start\|>.*?<\|box_end\|>"), re.compile(r"\d+")


def coarse(answer: str) -> str:
    """An answer whose boxes have whole hundredths: finer than a pixel of a small page nothing can be seen."""
    return _BOX.sub(lambda box: _NUMBER.sub(lambda n: str(10 * round(int(n[0]) / 10)), box[0]), answer)
