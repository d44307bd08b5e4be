"""Everything that can end a worker or its server in the middle of a job: what comes out must be what an undisturbed run gives, bit for bit."""
import os
import pathlib
import shutil
import signal
import time

import pytest
import tiny_model
from live_jobs import DEADLINE, LONG, Jobs, LiveServer
from small_disk import NAMESPACE, SmallDisk
from worker_binary import WORKER, needs_worker

pytestmark = needs_worker


def assert_as_undisturbed(jobs, name, undisturbed):
    assert jobs.result(name)["parameters_sha256"] == undisturbed[0]["parameters_sha256"]
    assert jobs.losses(name) == undisturbed[1]


def wait_for(condition, what):
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def is_gone(pid):
    """No such process, or one that only waits to be reaped."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_kill_9_of_a_worker(jobs, undisturbed):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    os.kill(jobs.worker_pid(name), signal.SIGKILL)
    assert_as_undisturbed(jobs, name, undisturbed)
    assert jobs.show(name)["attempt"] == 2


def test_kill_9_of_the_server(jobs, undisturbed):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    jobs.server.kill()
    jobs.server.start()
    assert_as_undisturbed(jobs, name, undisturbed)
    assert jobs.show(name)["attempt"] >= 2


def test_a_server_that_ends_hands_its_jobs_to_the_next(jobs, undisturbed):
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    assert jobs.server.stop() == 0
    jobs.server.start()
    assert_as_undisturbed(jobs, name, undisturbed)


def test_a_worker_that_hangs_loses_its_lease(tmp_path, folder, undisturbed):
    server = LiveServer(tmp_path / "data", args=["--worker-lease", "5s"]).start()
    jobs = Jobs(server, folder)
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    os.kill(jobs.worker_pid(name), signal.SIGSTOP)
    assert_as_undisturbed(jobs, name, undisturbed)
    assert jobs.show(name)["attempt"] == 2
    assert server.stop() == 0


@pytest.fixture
def runaway(tmp_path):
    """A worker program whose workers the server cannot kill, as on a machine that is out of reach: each has a session of its own."""
    program = tmp_path / "runaway-worker"
    program.write_text(f'#!/bin/sh\nsetsid "{WORKER}" "$@" &\nwait\n')
    program.chmod(0o755)
    return program


def test_a_worker_that_wakes_up_late_is_fenced_off(tmp_path, folder, undisturbed, runaway):
    server = LiveServer(tmp_path / "data", args=["--worker-lease", "5s", "--worker", str(runaway)]).start()
    jobs = Jobs(server, folder)
    name = jobs.submit(**LONG)
    jobs.wait_step(name, 200)
    old = jobs.worker_pid(name, attempt=1)
    os.kill(old, signal.SIGSTOP)
    wait_for(lambda: int(jobs.show(name)["attempt"]) == 2 and jobs.show(name)["state"] == "RUNNING", "a second attempt")
    assert not is_gone(old), "it must still be there to speak late"
    before = (jobs.work(name) / "attempt-1" / "replay.log").stat().st_size
    os.kill(old, signal.SIGCONT)  # what it says now is refused, and it learns that it is over
    wait_for(lambda: is_gone(old), "the old worker's end")
    assert_as_undisturbed(jobs, name, undisturbed)
    job = jobs.show(name)
    assert job["attempt"] == 2 and job.get("reason", "") == "", job
    assert before <= (jobs.work(name) / "attempt-1" / "replay.log").stat().st_size, "it wrote into its own folder, if at all"
    assert server.stop() == 0


def test_out_of_memory_is_the_jobs_problem(jobs, tmp_path):
    tiny_model.write(tmp_path / "large", hidden_size=512, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=8)
    # 80 MiB of weights: with gradients and two moments four times that.
    job = jobs.wait(jobs.submit(model=str(tmp_path / "large" / "m"), optimizer={"name": "adamw", "lr": 1e-3}, limits={"memory": "500MiB"}), "FAILED")
    assert "out of memory" in job["reason"] and int(job["attempt"]) == 1, job
    assert jobs.result(jobs.submit())["steps"] == 20  # the server is as before


def test_a_limit_too_small_for_the_program(jobs):
    job = jobs.wait(jobs.submit(limits={"memory": "24MiB"}), "FAILED")
    assert "limits.memory: 24 MiB is too little: the program itself leaves less than 32 MiB of it" in job["reason"], job
    assert int(job["attempt"]) == 1, job
    assert jobs.result(jobs.submit())["steps"] == 20


def test_memory_that_libraries_reserve_and_leave_alone_does_not_count(jobs):
    assert jobs.result(jobs.submit(limits={"memory": "160MiB"}))["steps"] == 20


def test_wall_clock_is_over(jobs):
    name = jobs.submit(**{**LONG, "steps": 1_000_000}, limits={"wall": "5s"})
    job = jobs.wait(name, "FAILED")
    assert job["reason"] == "limits.wall: 5 s are over" and int(job["attempt"]) == 1, job


@pytest.mark.skipif(NAMESPACE is None, reason="no mount namespaces here")
def test_a_full_disk_fails_the_job_and_room_lets_it_go_on(tmp_path, folder, undisturbed):
    disk = SmallDisk(tmp_path / "disk", 24)
    process, address = disk.start()

    class Server:
        pass
    server = Server()
    server.address, server.data_dir = address, str(tmp_path / "elsewhere" / "data")  # job files are written outside the small disk
    (tmp_path / "elsewhere").mkdir()
    jobs = Jobs(server, folder)
    try:
        name = jobs.submit(**LONG)
        jobs.wait_step(name, 200)
        disk.fill()
        job = jobs.wait(name, "FAILED")
        assert "disk" in job["reason"], job
        assert jobs.run("optimizers").returncode == 0, "the server goes on"
        disk.free()
        jobs.run("job", "resume", name)
        result = jobs.result(name)
        assert result["parameters_sha256"] == undisturbed[0]["parameters_sha256"]
    finally:
        process.terminate()
        assert process.wait() == 0
        process.stdout.close()
        disk.close()


def test_a_restored_backup_shows_what_ended_and_goes_on_with_the_rest(jobs, tmp_path, undisturbed):
    ended = jobs.submit()
    result = jobs.result(ended)
    running = jobs.submit(**LONG)
    jobs.wait_step(running, 200)
    jobs.run("backup", "nightly")
    at = int(jobs.show(running)["step"])
    jobs.run("job", "cancel", running)
    shutil.copytree(pathlib.Path(jobs.server.data_dir) / "backups" / "nightly", tmp_path / "restored")
    server = LiveServer(tmp_path / "restored").start()
    restored = Jobs(server, jobs.folder)
    assert restored.result(ended) == result
    assert restored.run("job", "logs", ended).stdout
    resumed = restored.result(running)
    assert resumed["parameters_sha256"] == undisturbed[0]["parameters_sha256"] and at < 3000
    assert restored.losses(running) == undisturbed[1]
    assert server.stop() == 0
