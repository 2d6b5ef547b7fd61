"""Says by its exit status whether Triton's HTTP port, its one argument, says that it serves."""

import sys
import urllib.error
import urllib.request

TIMEOUT_S = 4


def main(port: str) -> int:
    """Returns 0 if it is ready, 1 if not; says why."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=TIMEOUT_S) as answer:
            print(f"status {answer.status}")
            return 0 if answer.status == 200 else 1
    except (urllib.error.URLError, OSError) as error:
        print(error)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
