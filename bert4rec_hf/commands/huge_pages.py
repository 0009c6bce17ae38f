"""Memory in huge pages, which speeds up training on a CPU; torch must be asked early."""

import logging
import os
from pathlib import Path

logger = logging.getLogger(__name__)

VARIABLE = "THP_MEM_ALLOC_ENABLE"
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def use_huge_pages(setting: Path = SETTING) -> bool:
    """Have torch allocate large tensors in huge pages, where the kernel gives them on request.

    Large tensors are allocated in every step, and most of that time goes into small pages. Must be
    called before torch allocates; a value set by the user is kept.

    Args:
        setting: What the kernel says of huge pages.

    Returns:
        Whether they are used.
    """
    try:
        is_offered = "[never]" not in setting.read_text(encoding="utf-8")
    except OSError:
        is_offered = False  # no Linux
    if is_offered:
        os.environ.setdefault(VARIABLE, "1")
    is_used = is_offered and os.environ[VARIABLE] == "1"
    logger.info("huge pages: %s (%s)", "on" if is_used else "off", VARIABLE)
    return is_used
