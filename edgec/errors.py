"""The one exception of edgec and the table of its codes."""

from __future__ import annotations

# Ranges: 10 call, 11 frontend, 12 IR, 13 rewrites and calibration, 14 lowering and targets, 15 artifact, 16 runtime,
# 17 language models, 19 internal.
CODES: dict[str, str] = {
    "EC1001": "an option or argument is wrong",
    "EC1002": "a package that this command needs is not installed",
    "EC1003": "a file cannot be read or written",
    "EC1101": "the file is not an ONNX model",
    "EC1102": "the model has unsupported nodes",
    "EC1103": "the model is not valid ONNX",
    "EC1104": "an input must be known when compiling",
    "EC1201": "an op's inputs or attributes do not fit",
    "EC1202": "the IR text does not parse",
    "EC1203": "a shape does not fit",
    "EC1301": "a rewrite cannot be applied",
    "EC1302": "calibration data does not fit the model",
    "EC1303": "the model cannot be trained",
    "EC1305": "what is asked of pruning cannot be had",
    "EC1306": "the build lost more than is allowed",
    "EC1307": "the graph cannot be written as ONNX",
    "EC1401": "an op cannot be lowered for this target",
    "EC1402": "the target is unknown or malformed",
    "EC1403": "compiling or linking the code failed",
    "EC1501": "the artifact cannot be opened",
    "EC1502": "the artifact is not a well-formed archive",
    "EC1503": "the artifact's manifest is malformed",
    "EC1504": "a member's SHA-256, checksum or size is not the manifest's",
    "EC1505": "the artifact's format is another version",
    "EC1506": "the artifact is for another CPU",
    "EC1507": "the artifact's plan is malformed",
    "EC1508": "the artifact's code cannot be loaded",
    "EC1509": "the artifact cannot be written",
    "EC1601": "an input is missing or unknown",
    "EC1602": "an input's dtype does not fit",
    "EC1603": "an input's shape does not fit",
    "EC1604": "the shapes of this call do not fit together",
    "EC1605": "an op met a value it cannot take",
    "EC1606": "memory for this call cannot be had",
    "EC1607": "an output is unknown",
    "EC1608": "a sequence is longer than the context",
    "EC1701": "the tokenizer is missing or broken",
    "EC1702": "the chat template is missing or broken",
    "EC1703": "the model's logits are not numbers",
    "EC1704": "the output's schema cannot be used",
    "EC1801": "an artifact for another CPU cannot be emulated here",
    "EC1802": "the emulator failed",
    "EC1901": "a fault inside edgec",
}


class EdgecError(Exception):
    """Every failure that edgec reports: `code`, `message` (the reason), `where` (node, file), `hint` (next step).

    str() is one message: "EC1203 where: reason. Next step."
    """

    def __init__(self, code: str, message: str, where: str | None = None, hint: str | None = None) -> None:
        super().__init__(code, message, where, hint)
        self.code = code
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.code} {self.where}: {self.message}" if self.where else f"{self.code} {self.message}"
        if not text.endswith((".", "!", "?")):
            text += "."
        if self.hint:
            text += f" {self.hint}" + ("" if self.hint.endswith((".", "!", "?")) else ".")
        return text
