"""The stages that users run: read, embed, fit, evaluate, query, report; and the command line over them.

The only room that knows transformers, datasets and click; each stage is a frozen dataclass and a function.
"""
