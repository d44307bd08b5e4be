"""A real optod in a folder of its own: started on a free port, killed, started again on the same one."""

import os
import pathlib
import signal
import subprocess

import optod

ROOT = pathlib.Path(__file__).resolve().parents[3]
BINARY = pathlib.Path(os.environ.get("OPTOD_BIN_DIR", ROOT / "build" / "bin")) / "optod"


class LiveServer:
    """data_dir: kept between starts.  address: HOST:PORT once started; a later start listens there again.  args: further flags of optod."""

    def __init__(self, data_dir, args=(), env=None, binary=BINARY):
        self.data_dir, self.args, self.binary = str(data_dir), list(args), str(binary)
        self.env = {**os.environ, **(env or {})}
        self.address, self.process = "", None
        self.log = open(os.path.join(os.path.dirname(self.data_dir), os.path.basename(self.data_dir) + ".log"), "ab")

    def start(self):
        command = [self.binary, "--data-dir", self.data_dir, "--listen", self.address or "127.0.0.1:0", "--http", "off", *self.args]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, env=self.env, text=True)
        line = self.process.stdout.readline()
        if not line.startswith("optod ready grpc="):
            raise RuntimeError(f"optod did not start: {line!r}, exit status {self.process.wait()}; see {self.log.name}")
        self.address = line.split("grpc=")[1].split()[0]
        return self

    def kill(self):
        """SIGKILL: nothing is flushed."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def stop(self):
        """SIGTERM; the exit status of a drained server is 0."""
        if self.process is None or self.process.returncode is not None:
            return 0
        self.process.terminate()
        status = self.process.wait()
        self.process.stdout.close()
        return status

    def connect(self, **options):
        return optod.connect(self.address, **{"token": "", **options})
