# SPDX-License-Identifier: Apache-2.0
"""The part that ships to a device: media in, verdicts out.  Importing it needs only NumPy.

It also keeps the libraries behind it from reporting to their makers: every package of this project
imports this one first, before any of those libraries reads its variable, and processes that are
started inherit it.  What the environment said before does not count: nothing leaves the machine.

* ONNX Runtime from 1.29 on asks for mobile.events.data.microsoft.com seconds after its import and
  keeps a device id and a queue of events in ``~/.cache/Microsoft`` (its ``Privacy.md``); its own
  ``disable_telemetry_events()`` comes too late for both.
* Ray reports usage from the machine that starts it.
"""

import os

os.environ.update(ORT_DISABLE_TELEMETRY="1", RAY_USAGE_STATS_ENABLED="0")
