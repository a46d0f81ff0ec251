"""The formats that can be read, in the order in which they are tried.

A source is read as the first format whose columns it has and whose look at the first rows agrees. So a file with
both `chosen`/`rejected` and scored responses is a preference file, `gold_score` makes a pool of what would
otherwise be an attribute table, and HelpSteer2's five columns win over the general attribute table. RewardBench 2 comes
before RM-Bench: both have lists of texts on both sides, and only the former counts them. What carries no annotation
comes last.
"""

from collections.abc import Sequence

from pipeline.readers.conversations import MESSAGES, RESPONSES
from pipeline.readers.dialogue import HH_RLHF
from pipeline.readers.example import Format, Row
from pipeline.readers.hhh import HHH
from pipeline.readers.pool import POOL
from pipeline.readers.preference import PREFERENCE, SHARED_PREFIX
from pipeline.readers.ratings import ATTRIBUTES, HELPSTEER2
from pipeline.readers.rewardbench2 import REWARDBENCH2
from pipeline.readers.rmb import RMB_BON, RMB_PAIRWISE
from pipeline.readers.rmbench import RM_BENCH
from pipeline.readers.sidebyside import HELPSTEER2_PREFERENCE, JUDGEBENCH, LLMBAR, MT_BENCH, UNIFIED_FEEDBACK
from pipeline.readers.ultrafeedback import ULTRAFEEDBACK

FORMATS: dict[str, Format] = {
    "rewardbench-2": REWARDBENCH2,
    "rm-bench": RM_BENCH,
    "hh-rlhf": HH_RLHF,
    "preference-shared-prefix": SHARED_PREFIX,
    "preference": PREFERENCE,
    "rmb-bon": RMB_BON,
    "rmb-pairwise": RMB_PAIRWISE,
    "mt-bench": MT_BENCH,
    "judgebench": JUDGEBENCH,
    "llmbar": LLMBAR,
    "hhh": HHH,
    "unified-feedback": UNIFIED_FEEDBACK,
    "ultrafeedback": ULTRAFEEDBACK,
    "helpsteer2-preference": HELPSTEER2_PREFERENCE,
    "helpsteer2": HELPSTEER2,
    "pool": POOL,
    "attributes": ATTRIBUTES,
    "responses": RESPONSES,
    "messages": MESSAGES,
}


def recognise(columns: Sequence[str], first_rows: Sequence[Row], *, format: str | None = None) -> str:
    """The name of the format to read with: `format` where given, else the first that fits.

    Raises: ValueError naming the columns found and what is needed.
    """
    found = frozenset(columns)
    if format is not None:
        missing = sorted(check_format(format).required - found)
        if missing:
            raise ValueError(
                f"format {format} needs {FORMATS[format].needs}, but the columns are {_listed(columns)}: "
                f"{', '.join(missing)} not found; rename columns or choose another format"
            )
        return format
    for name, known in FORMATS.items():
        if known.required <= found and known.matches(found, first_rows):
            return name
    needs = "; ".join(f"{name}: {known.needs}" for name, known in FORMATS.items())
    raise ValueError(f"the columns {_listed(columns)} fit no format; rename them to fit one of: {needs}")


def check_format(name: str) -> Format:
    """The format of that name; ValueError lists the names there are."""
    if name not in FORMATS:
        raise ValueError(f"no format is named {name!r}; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]


def _listed(columns: Sequence[str]) -> str:
    return ", ".join(columns[:30]) + (f" and {len(columns) - 30} more" if len(columns) > 30 else "")
