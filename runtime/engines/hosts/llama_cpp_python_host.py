"""The engine process of the llama-cpp-python kind: its own server, with what it lacks put right.

It runs as a script, so that the package above it is not imported. Standard input carries one line
of JSON (the server's settings, the key among them: never in argv, in a file or in an environment
that can be read from outside) and then stays open; its end means that the process above is gone.

The server takes every setting from a variable of the same name without a prefix (``SEED``,
``CACHE``, ``CONFIG_FILE``): those of the surroundings are removed. It allows every web page
everything (CORS ``*`` with credentials) and shows its documentation to all, with no setting for
either: both are taken out of the application before it serves.
"""

import json
import os
import sys
import threading
from typing import Any


def fail(message: str) -> int:
    """Say why on the log and end with 1."""
    os.write(1, f"error: {message}\n".encode())
    return 1


def closed(app: Any, cors: type) -> Any:
    """The application without CORS headers and without pages about itself."""
    app.user_middleware = [layer for layer in app.user_middleware if layer.cls is not cors]
    pages = {app.docs_url, app.redoc_url, app.openapi_url, app.swagger_ui_oauth2_redirect_url}
    app.router.routes = [
        route for route in app.router.routes if getattr(route, "path", None) not in pages
    ]
    return app


def end_with_input() -> None:
    """Wait until the process above is gone."""
    while os.read(0, 4096):  # sys.stdin's lock, held by a thread, would abort an orderly end
        pass
    os._exit(0)


def main() -> int:
    """Serve until the process above is gone or a signal comes."""
    line = sys.stdin.buffer.readline()
    if not line:
        return fail("no configuration on standard input")
    settings: dict[str, str] = json.loads(line)
    try:
        from llama_cpp.server import __main__ as server  # noqa: PLC0415 - missing: a message
        from llama_cpp.server.app import CORSMiddleware  # noqa: PLC0415
    except ImportError as exc:
        return fail(f"cannot import llama_cpp: {exc}")
    steering = {"config_file", *server.Settings.model_fields}
    for name in [name for name in os.environ if name.lower() in steering]:
        del os.environ[name]
    os.environ.update(settings)
    create_app = server.create_app
    server.create_app = lambda **options: closed(create_app(**options), CORSMiddleware)
    threading.Thread(target=end_with_input, daemon=True).start()
    server.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
