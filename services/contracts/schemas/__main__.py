"""Writes the generated schemas."""

from services.contracts.schemas import HERE, generated

for name, text in generated().items():
    (HERE / name).write_text(text)
