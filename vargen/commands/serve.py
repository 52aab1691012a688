"""`vargen serve` and scripts/serve.py: an image server in OpenAI's shape. See docs/serving.md."""

import errno
import os
import signal
import socket
import sys
from typing import Any

from vargen.commands.flags import Parser
from vargen.server.options import LOOPBACK, Options, add_flags, parsed, preset, read

MOST_HEAD = 1 << 16  # bytes of a request's line and headers


def parser() -> Parser:
    """The flags."""
    words = "An image server in OpenAI's shape, see docs/serving.md."
    made = Parser(prog="vargen serve", description=words)
    add_flags(made)
    return made


def command(argv: list[str]) -> None:
    """Serve images until SIGTERM or Ctrl-C; then finish what was begun."""
    options = read(parser(), argv)
    key = options.key()
    for name, given in map(parsed, options.model):
        preset(name, given)  # numbers that their files do not have end here
    if options.ray:
        from vargen.server.ray import serve_images

        _warn(options, key)
        serve_images(options)
        return
    try:
        import litserve  # noqa: F401
    except ImportError:
        raise ValueError("the server needs LitServe: pip install 'vargen[serve]'") from None
    import torch

    from vargen.server.workers import Server

    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        raise ValueError("device cuda was asked for, but torch finds no CUDA device")
    _warn(options, key)
    serve(Server(options, options.device or ("cuda" if there else "cpu"), key), options)


def _warn(options: Options, key: str | None) -> None:
    """ValueError where nothing can listen; a word where strangers can ask."""
    if options.host != LOOPBACK and key is None:
        print("vargen: anybody who reaches this address can draw: there is no API key", file=sys.stderr)
    _check_port(options.host, options.port)


def _check_port(host: str, port: int) -> None:
    """ValueError where nothing can listen there."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what has just ended does not hold its port
        try:
            tried.bind((host, port))
        except OSError as error:
            why = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be had: {error.strerror}"
            raise ValueError(f"port {port} of {host} {why}; give another --port") from None


def serve(server: Any, options: Options) -> None:
    """Run a server until it is told to stop; no process of it is left behind."""
    _stop_once()
    server.inference_workers = []
    print(f"vargen: loading {', '.join(options.names)}", file=sys.stderr, flush=True)
    try:
        server.run(
            host=options.host,
            port=options.port,
            num_api_servers=1,  # one desk, so that the queue has one length
            log_level="warning",
            generate_client_file=False,
            access_log=False,
            log_config=None,
            server_header=False,
            limit_concurrency=options.max_connections,
            http="h11",  # it bounds what a client may send before anything is looked at
            h11_max_incomplete_event_size=MOST_HEAD,
        )
    except (RuntimeError, EOFError) as error:  # a worker did not start, and has said why; or the queues have gone
        raise ValueError(f"the server stopped: {str(error) or 'its queues have gone'}") from None
    finally:
        for worker in server.inference_workers:
            worker.kill()
    if server.front_died is not None:
        code = server.front_died
        raise ValueError(f"the process that answers requests has died (exit code {code}), and the server with it")


def _stop_once() -> None:
    """SIGTERM ends this process as Ctrl-C does; once it is ending, neither is heard again."""
    main = os.getpid()

    def stop(number: int, frame: Any) -> None:
        if os.getpid() != main:  # a process forked from this one, before it has handlers of its own or after
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for other in (signal.SIGINT, signal.SIGTERM):
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
