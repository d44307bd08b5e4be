"""A disk that can be filled: a small tmpfs in a mount namespace of its own (needs root, or unprivileged user namespaces)."""

import pathlib
import subprocess

from live_server import BINARY


def namespace_command():
    """How to get a mount namespace here, or None."""
    for command in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        probe = subprocess.run([*command, "mount", "-t", "tmpfs", "-o", "size=64k", "none", "/mnt"], capture_output=True)
        if probe.returncode == 0:
            return command
    return None


NAMESPACE = namespace_command()


class SmallDisk:
    """A tmpfs of `mib` MiB at `folder` in a namespace that a sleeping process holds; optod runs inside."""

    def __init__(self, folder, mib):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir()
        script = 'mount -t tmpfs -o size="$1" none "$2" && echo mounted && exec sleep 1000'
        self.holder = subprocess.Popen([*NAMESPACE, "sh", "-c", script, "sh", f"{mib}m", str(folder)], stdout=subprocess.PIPE, text=True)
        assert self.holder.stdout.readline() == "mounted\n"

    def inside(self, *command, **options):
        user = ["--user", "--preserve-credentials"] if "--user" in NAMESPACE else []
        return subprocess.Popen(["nsenter", f"--target={self.holder.pid}", "--mount", *user, *command], text=True, **options)

    def run(self, *command):
        assert self.inside(*command).wait() == 0, command

    def fill(self):
        """Uses up what is left."""
        self.inside("sh", "-c", f"head -c 1G /dev/zero > {self.folder}/ballast", stderr=subprocess.DEVNULL).wait()

    def free(self):
        """Undoes ``fill``."""
        self.run("rm", f"{self.folder}/ballast")

    def start(self):
        """A server on it: the process, and its address."""
        server = self.inside(str(BINARY), "--data-dir", str(self.folder / "data"), "--listen", "127.0.0.1:0", "--http", "off", stdout=subprocess.PIPE)
        line = server.stdout.readline()
        assert line.startswith("optod ready grpc="), line
        return server, line.split("grpc=")[1].split()[0]

    def close(self):
        self.holder.kill()
        self.holder.wait()
