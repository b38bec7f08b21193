"""Runs the command `scratch` in forks of one process that has imported everything: a start costs a second, not five.

Reads lines of JSON. One with "arguments" forks, and prints the number of the process; one with "process" prints the
exit code of that process, or null while it runs. A fork logs every step, and with "hold" waits after that many steps
until the file "go" exists; meanwhile there is a file whose name is that of the output with ".held" added.
"""

import json
import os
import sys
import time

import jax
from scratch_core.cli import command
from scratch_core.tasks import causal_lm
from scratch_core.train import Trainer, distributed, trainer


def run(arguments, output, devices=1, environment=None, hold=None, go=None, meeting_seconds=60.0):
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.update(environment or {})
    sys.argv = ["scratch", *arguments]
    jax.config.update("jax_num_cpu_devices", devices)
    distributed.MEETING_SECONDS = meeting_seconds
    causal_lm.SAMPLE_TOKENS = 0
    Trainer.__init__.__kwdefaults__["log_every"] = 1
    ask, asked = trainer.any_signal, []

    def any_signal(received):
        asked.append(received)
        if len(asked) == hold:
            open(f"{output}.held", "w").close()
            while not os.path.exists(go):
                time.sleep(0.02)
        return ask(received)

    trainer.any_signal = any_signal
    command()


def serve():
    import grain  # noqa: F401 each fork would import it again
    from orbax.checkpoint import multihost, v1  # noqa: F401 each fork would import them again
    from scratch_core.cli import train  # noqa: F401 each fork would import it again

    for line in sys.stdin:
        request = json.loads(line)
        if "process" in request:
            child, status = os.waitpid(request["process"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if child else None), flush=True)
        elif child := os.fork():
            print(child, flush=True)
        else:
            run(**request)


if __name__ == "__main__":
    serve()
