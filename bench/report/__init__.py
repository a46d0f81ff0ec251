"""The report: one HTML page that needs no network. Each picture has a module that asks the store and draws.

A picture is drawn from the answer to the very query that the page shows under it. Every text from the store passes
through jinja2's autoescape; SVG is made of numbers and our own class names alone.
"""

from bench.report.page import render, write_report

__all__ = ["render", "write_report"]
