"""Language models: tokens in, tokens out. Needs numpy only; `tokenizers`, `jinja2` and `llguidance` where text, chat
templates and schemas are used (extra `lm`)."""
