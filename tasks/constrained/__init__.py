"""Tasks whose answers are under a constraint: patterns, JSON schemas, molecules, SQL.

Each shows a conversation, knows the constraint of an answer, and judges answers by other means than the constraint's
engine. Data comes from a data folder (``data=``, ``--data`` or the variable TEXTGUIDE_DATA), which holds:

===================================  ==========================
file                                 task
===================================  ==========================
``awrs/patterns.csv``                ``patterns``
``jsonschemabench/sample.jsonl``     ``json``
``awrs/gdb17_sample.txt``            ``molecules``
``awrs/spider/``                     ``sql``
===================================  ==========================
"""

from __future__ import annotations

from .base import ConstrainedTask, Item
from .json_documents import JSONDocuments
from .molecules import Molecules
from .pattern_matching import PatternMatching
from .text_to_sql import TextToSQL

TASKS: dict[str, type[ConstrainedTask]] = {
    task.name: task for task in (PatternMatching, JSONDocuments, Molecules, TextToSQL)
}

__all__ = ["TASKS", "ConstrainedTask", "Item", "JSONDocuments", "Molecules", "PatternMatching", "TextToSQL"]
