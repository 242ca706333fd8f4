"""The exit status of a command that continues an earlier run of itself."""

import sys
from collections.abc import Callable

from ..client.endpoint_error import EndpointError
from ..errors import RequestError, StartupError


def run_resumable(job: Callable[[], str]) -> int:
    """Runs the job, and prints the summary that it returns or the reason why it ended early.

    Returns the exit status: 0, 1 after an error, 130 after Ctrl-C or SIGTERM.
    """
    try:
        summary = job()
    except StartupError as error:
        print(f"llava-serving: {error}", file=sys.stderr)
        return 1
    except (OSError, RequestError, EndpointError) as error:
        print(f"llava-serving: {error}; run the same command again to continue", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nllava-serving: stopped; run the same command again to continue", file=sys.stderr)
        return 130
    print(summary)
    return 0
