#!/usr/bin/env python3
"""One real Apache Kafka broker for tests: KRaft, a single node, no container.

    kafka.py fetch                          copy the jars pom.xml names (Maven, about 45 MB, once)
    kafka.py start --data DIR --port N      run the broker on 127.0.0.1:N in the foreground
    kafka.py wait --port N [--timeout S]    return once the broker on 127.0.0.1:N answers
    kafka.py check                          say whether `start` could run now, without fetching

``start`` becomes the broker's JVM by ``exec``: its process id is the broker's, so SIGTERM stops the
broker cleanly and SIGKILL is a crash. The same data directory can be started again after either.
Only the standard library is used, so that this runs before anything is installed.

Environment: ``BATON_KAFKA_HOME`` (where the jars are kept; default ``~/.cache/baton/kafka-VERSION``),
``BATON_KAFKA_HEAP`` (default ``384m``), ``JAVA_HOME``.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

HERE = Path(__file__).resolve().parent
POM = HERE / "pom.xml"
MINIMUM_JAVA = 17
FETCH_ATTEMPTS = 3

# What differs from a production broker is number, size and waiting time; acknowledgement and recovery
# are Kafka's own. The session timeout bounds the restart after a crash: the controller first has to
# give up the broker that died.
SERVER_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners=BROKER://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=BROKER://127.0.0.1:{port}
listener.security.protocol.map=BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller_port}
log.dirs={log_dir}
auto.create.topics.enable=false
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
broker.heartbeat.interval.ms=250
broker.session.timeout.ms=1500
num.network.threads=2
num.io.threads=2
num.recovery.threads.per.data.dir=1
log.cleaner.dedupe.buffer.size=16777216
log.segment.bytes=67108864
"""

JVM_FLAGS = (
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xshare:auto",
    "-Djava.awt.headless=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dlog4j2.disableJmx=true",
)


class KafkaError(Exception):
    """Kafka cannot be fetched, started or reached; the text says what to do."""


def version() -> str:
    """Return the Kafka version that pom.xml names."""
    found = re.search(r"<kafka\.version>([\w.-]+)</kafka\.version>", POM.read_text("utf-8"))
    if found is None:
        raise KafkaError(f"{POM}: no <kafka.version>")
    return found.group(1)


def home() -> Path:
    """Return the directory the jars are kept in, whether or not it exists."""
    chosen = os.environ.get("BATON_KAFKA_HOME")
    return Path(chosen) if chosen else Path.home() / ".cache" / "baton" / f"kafka-{version()}"


def is_fetched() -> bool:
    """Say whether `fetch` has completed for the pom.xml of now."""
    with contextlib.suppress(OSError):
        return (home() / "complete").read_text("utf-8") == POM.read_text("utf-8")
    return False


def java() -> str:
    """Return the path of a Java that is new enough, or raise KafkaError."""
    java_home = os.environ.get("JAVA_HOME")
    path = shutil.which("java", path=f"{java_home}/bin") if java_home else shutil.which("java")
    if path is None:
        raise KafkaError(f"no java: install a Java {MINIMUM_JAVA} runtime")
    asked = subprocess.run([path, "-version"], capture_output=True, text=True, check=False)  # noqa: S603
    found = re.search(r'version "(\d+)', asked.stderr)
    if found is None or int(found.group(1)) < MINIMUM_JAVA:
        raise KafkaError(f"{path} is not Java {MINIMUM_JAVA} or newer: {asked.stderr.strip()}")
    return path


def check() -> str:
    """Return what `start` would run, or raise KafkaError with what is missing."""
    if not is_fetched():
        raise KafkaError(f"Kafka {version()} is not fetched: run {Path(__file__).name} fetch")
    return f"Apache Kafka {version()} from {home()}, by {java()}"


def fetch() -> Path:
    """Copy Kafka's jars to `home` unless they are there; two calls at once do it once."""
    if is_fetched():
        return home()
    target = home()
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_name(target.name + ".lock")):
        if is_fetched():
            return target
        mvn = shutil.which("mvn")
        if mvn is None:
            raise KafkaError("no mvn: install Maven, or set KAFKA_BOOTSTRAP_SERVERS to a broker")
        partial = target.with_name(target.name + ".partial")
        for attempt in range(1, FETCH_ATTEMPTS + 1):
            shutil.rmtree(partial, ignore_errors=True)
            copied = subprocess.run(  # noqa: S603
                [
                    *(mvn, "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"),
                    *("-DincludeScope=runtime", f"-DoutputDirectory={partial / 'jars'}"),
                ],
                stdout=sys.stderr,
                check=False,
            )
            if copied.returncode == 0:
                break
            if attempt == FETCH_ATTEMPTS:
                raise KafkaError(f"Maven could not copy Kafka {version()} (its reason is above)")
            time.sleep(2 * attempt)
        (partial / "complete").write_text(POM.read_text("utf-8"), "utf-8")
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    return target


def start(data: Path, port: int) -> NoReturn:
    """Become the broker on 127.0.0.1:`port` with its state in `data`; formats `data` the first time."""
    program = [java(), *_jvm(fetch())]
    data = data.resolve()
    log_dir = data / "log"
    data.mkdir(parents=True, exist_ok=True)
    # The controller's port is chosen afresh: voters are named in this file, not in the data, so a
    # port that another process took meanwhile does not stop a restart.
    properties = data / "server.properties"
    properties.write_text(
        SERVER_PROPERTIES.format(port=port, controller_port=_free_port(), log_dir=log_dir), "utf-8"
    )
    if not (
        log_dir / "meta.properties"
    ).exists():  # written last: without it, formatting was cut off
        shutil.rmtree(log_dir, ignore_errors=True)
        arguments = ["format", "-t", "BatonTestClusterAAAAAA", "-c", str(properties)]
        formatted = subprocess.run(  # noqa: S603
            [*program, "kafka.tools.StorageTool", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if formatted.returncode != 0:
            raise KafkaError(f"formatting {log_dir} failed:\n{formatted.stdout}")
    os.execv(program[0], [*program, "kafka.Kafka", str(properties)])  # noqa: S606


def wait(port: int, timeout: float) -> float:
    """Return the seconds until the broker on 127.0.0.1:`port` answered, or raise KafkaError."""
    began = time.monotonic()
    while (elapsed := time.monotonic() - began) < timeout:
        if answers(port):
            return elapsed
        time.sleep(0.05)
    raise KafkaError(f"no Kafka broker answered on 127.0.0.1:{port} within {timeout:g} s")


def answers(port: int) -> bool:
    """Ask 127.0.0.1:`port` for its API versions (ApiVersions v0) and say whether it answered."""
    client = b"baton"
    request = struct.pack(">hhih", 18, 0, 1, len(client)) + client
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = b""
            while len(answer) < 10:  # length, correlation id, error code
                part = connection.recv(4096)
                if not part:
                    return False
                answer += part
    except OSError:
        return False
    _, correlation_id, error_code = struct.unpack(">iih", answer[:10])
    return correlation_id == 1 and error_code == 0


def _jvm(directory: Path) -> list[str]:
    heap = os.environ.get("BATON_KAFKA_HEAP", "384m")
    return [*JVM_FLAGS, "-Xms128m", f"-Xmx{heap}", "-cp", f"{directory / 'jars'}/*"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the kernel gives it back when the process ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Run one command; 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="copy Kafka's jars, once")
    commands.add_parser("check", help="say whether the broker could start now, without fetching")
    starting = commands.add_parser("start", help="run the broker in the foreground")
    starting.add_argument("--data", type=Path, required=True, help="directory of its state")
    starting.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    waiting = commands.add_parser("wait", help="wait until the broker answers")
    waiting.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    waiting.add_argument("--timeout", type=float, default=60.0, help="seconds (default 60)")
    options = parser.parse_args()
    try:
        if options.command == "fetch":
            sys.stdout.write(f"{fetch()}\n")
        elif options.command == "check":
            sys.stdout.write(f"{check()}\n")
        elif options.command == "start":
            start(options.data, options.port)
        else:
            sys.stdout.write(f"{wait(options.port, options.timeout):.2f}\n")
    except KafkaError as error:
        sys.stderr.write(f"kafka.py: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
