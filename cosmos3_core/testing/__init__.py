"""The conformance kit: what a device package has to pass, on its own machine. A vendor's folder is two lines:

    # test_acme.py
    from cosmos3_core.testing.suite import *
    BACKEND = "acme"

and `cosmos3 check --backend acme` runs the same without a folder. `plugin.again` runs one test once
more, with a traceback. `suite` holds the tests, `plugin` what pytest needs
to run them over the rows of one backend; both import pytest.
"""

from pathlib import Path

ALONE = Path(__file__).with_name("alone.ini")
"""A configuration of pytest that says nothing. A tool is never handed the null device in the place of a file: it may be
one that somebody wrote to."""
