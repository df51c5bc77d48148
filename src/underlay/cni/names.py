"""Rules for the names that travel in the protocol. Each becomes part of a path or a kernel name somewhere.

Every function returns what is wrong with a name, as the end of a sentence, or "" where nothing is: the caller knows
whether the fault lies in the environment, a configuration or an annotation.
"""

from __future__ import annotations

import re

_IDENTIFIER = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_NOT_IN_FILE_NAME = re.compile(r"[\s/\\:\x00-\x1f\x7f]")
_NOT_IN_INTERFACE = re.compile(r"[\s/:\x00-\x1f\x7f]")
_MAX_FILE_NAME = 255  # NAME_MAX
_MAX_INTERFACE = 15  # IFNAMSIZ without the final NUL


def identifier_fault(value: str) -> str:
    """What is wrong with a container id or a network name (specification, section 1: "name" and CNI_CONTAINERID)."""
    if not value:
        return "is empty"
    if not _IDENTIFIER.fullmatch(value):
        return "must start with a letter or digit and may go on with letters, digits, '_', '.' and '-' only"
    if len(value) > _MAX_FILE_NAME:
        return f"is longer than {_MAX_FILE_NAME} characters"
    return ""


def interface_fault(value: str) -> str:
    """What is wrong with the name of a network interface (kernel: dev_valid_name; specification: CNI_IFNAME)."""
    if not value:
        return "is empty"
    if value in (".", ".."):
        return 'must not be "." or ".."'
    if _NOT_IN_INTERFACE.search(value):
        return "must hold no '/', ':', white space or control character"
    if len(value.encode("utf-8", "surrogateescape")) > _MAX_INTERFACE:
        return f"is longer than {_MAX_INTERFACE} bytes"
    return ""


def plugin_fault(value: str) -> str:
    """What is wrong with a plugin's "type", which is the name of an executable inside CNI_PATH (CVE-2021-20206)."""
    if not value:
        return "is empty"
    if value.startswith(".") or _NOT_IN_FILE_NAME.search(value):
        return "must be a plain file name without separators, spaces and a leading '.'"
    if len(value.encode("utf-8", "surrogateescape")) > _MAX_FILE_NAME:
        return f"is longer than {_MAX_FILE_NAME} bytes"
    return ""
