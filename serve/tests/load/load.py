#!/usr/bin/env python3
"""Load: jobs from many clients at once, with cancels and disconnects, and a kill in the middle. Needs Python alone.

    serve/tests/load/load.py target/release/pinhole-serve [--jobs 200] [--clients 50] [--kill]

Every accepted job has to end once, refusals have to be as many as were told, and memory has to stay: the mean over the last half of
the jobs within 2% of that over the first half, after a warm-up.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time

END = ("done", "failed", "cancelled")


class Server:
    def __init__(self, program, *arguments):
        command = [program, "-m", "mini", "--listen", "127.0.0.1:0", "--log-level", "info", *arguments]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"listening on http://([\d.]+):(\d+)", line):
                self.address = (found[1], int(found[2]))
                break
        threading.Thread(target=lambda: [None for _ in self.process.stderr], daemon=True).start()
        while self.ask("GET", "/ready")[0] != 200:
            time.sleep(0.05)

    def ask(self, method, path, body=None, timeout=600):
        connection = http.client.HTTPConnection(*self.address, timeout=timeout)
        headers = {"content-type": "application/json"} if body is not None else {}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, json.loads(data) if data[:1] in b"{[" and data else data.decode()

    def metrics(self):
        text = self.ask("GET", "/metrics")[1]
        return {name: float(value) for name, value in re.findall(r"^(\w+(?:{[^}]*})?) (\S+)$", text, re.M)}

    def resident(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return int(re.search(r"RssAnon:\s+(\d+)", status.read())[1])


def drawing(number, steps=4):
    return {"prompt": f"a star, number {number % 7}", "width": 64, "height": 64, "steps": steps, "seed": number}


class Load:
    """What clients saw."""

    def __init__(self, server):
        self.server, self.lock = server, threading.Lock()
        self.accepted, self.refused, self.left, self.resident = [], 0, 0, []

    def client(self, numbers, dice):
        for number in numbers:
            kind = dice.choice(["wait", "submit", "submit", "cancel", "leave"])
            if kind == "leave":
                self.leave(number, dice)
            else:
                self.send(number, kind, dice)

    def leave(self, number, dice):
        body = json.dumps(drawing(number, 40)).encode()
        head = (f"POST /v1/jobs?wait=true HTTP/1.1\r\nhost: {self.server.address[0]}\r\n"
                f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n")
        with socket.create_connection(self.server.address) as connection:
            connection.sendall(head.encode() + body)
            time.sleep(dice.uniform(0, 0.3))
        with self.lock:
            self.left += 1

    def send(self, number, kind, dice):
        path = "/v1/jobs?wait=true" if kind == "wait" else "/v1/jobs"
        while True:
            status, answer = self.server.ask("POST", path, drawing(number))
            if status != 429:
                break
            with self.lock:
                self.refused += 1
            time.sleep(dice.uniform(0.05, 0.5))
        assert status in (200, 202), answer
        with self.lock:
            self.accepted.append(answer["id"])
        if kind == "cancel":
            time.sleep(dice.uniform(0, 0.3))
            self.server.ask("DELETE", f"/v1/jobs/{answer['id']}")

    def watch(self, stop):
        while not stop.wait(0.1):
            self.resident.append(self.server.resident())


def run(program, jobs, clients):
    server = Server(program, "--queue-length", "30", "--queue-per-key", "30", "--keep", str(jobs))
    # As many jobs are known then as will ever be.
    for number in range(jobs):
        server.ask("POST", "/v1/jobs?wait=true", drawing(number, 1))
    before = server.metrics()
    load, stop = Load(server), threading.Event()
    threading.Thread(target=load.watch, args=(stop,), daemon=True).start()
    begun = time.monotonic()
    shares = [range(at, jobs, clients) for at in range(clients)]
    threads = [threading.Thread(target=load.client, args=(share, random.Random(at))) for at, share in enumerate(shares)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    while any(job["status"] not in END for job in server.ask("GET", "/v1/jobs")[1]):
        time.sleep(0.1)
    stop.set()
    took = time.monotonic() - begun
    after = server.metrics()

    def more(name):
        return round(after.get(name, 0) - before.get(name, 0))

    ended = {how: more(f'pinhole_jobs_ended_total{{outcome="{how}"}}') for how in END}
    accepted = more("pinhole_jobs_accepted_total")
    known = server.ask("GET", "/v1/jobs")[1]
    assert len(set(load.accepted)) == len(load.accepted) and set(load.accepted) <= {job["id"] for job in known}, "a job is lost"
    assert accepted == sum(ended.values()), f"{accepted} accepted, {ended}"
    refused = more('pinhole_jobs_refused_total{why="queue_full"}')
    # Who left may have been refused without hearing it.
    assert load.refused <= refused <= load.refused + load.left, (load.refused, refused)
    assert ended["failed"] == 0, ended
    half = len(load.resident) // 2
    first, last = statistics.mean(load.resident[:half]), statistics.mean(load.resident[half:])
    print(f"{jobs} jobs of {clients} clients in {took:.1f} s: {accepted} accepted, {ended}, {refused} refused, {load.left} left")
    print(f"memory: {first / 1024:.1f} MiB in the first half, {last / 1024:.1f} MiB in the last: {100 * (last / first - 1):+.2f}%")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    return abs(last / first - 1)


def overhead(program, jobs):
    """What a client waits beyond the phases of its job, and what of that is planning, which `pinhole generate` does as well."""
    server, beyond, planning = Server(program), [], []
    for number in range(jobs):
        begun = time.monotonic()
        done = server.ask("POST", "/v1/jobs?wait=true", drawing(number, 2))[1]
        beyond.append(time.monotonic() - begun - sum(done["outcome"]["seconds"].values()))
        begun = time.monotonic()
        server.ask("POST", "/v1/plan", drawing(number, 2))
        planning.append(time.monotonic() - begun)
    beyond, planning = (1e3 * statistics.median(times) for times in (beyond, planning))
    print(f"{jobs} jobs, one after the other: {beyond:.2f} ms beyond the phases in the median; a plan alone takes {planning:.2f} ms")
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(60)


def kill(program, jobs):
    with tempfile.TemporaryDirectory() as state:
        arguments = ("--state", state, "--queue-length", "1000", "--queue-per-key", "1000", "--keep", "10000")
        ids, kills = [], 0
        server = Server(program, *arguments)
        for number in range(jobs):
            ids.append(server.ask("POST", "/v1/jobs", drawing(number))[1]["id"])
            if number % (jobs // 4) == jobs // 4 - 1:
                time.sleep(0.7)
                os.kill(server.process.pid, signal.SIGKILL)
                server.process.wait()
                kills += 1
                server = Server(program, *arguments)
        while True:
            states = {job["id"]: job["status"] for job in server.ask("GET", "/v1/jobs")[1]}
            if all(states.get(job) in END for job in ids):
                break
            time.sleep(0.2)
        assert len(states) == len(ids) and set(states.values()) == {"done"}, states
        for job in ids:
            assert server.ask("GET", f"/v1/jobs/{job}")[1]["outcome"]["seeds"] == [ids.index(job)]
        print(f"{jobs} jobs, the server killed {kills} times: every one is done, once")
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--kill", action="store_true", help="kill the server in the middle, instead")
    parser.add_argument("--overhead", action="store_true", help="measure what a client waits beyond its job, instead")
    options = parser.parse_args()
    if options.kill:
        kill(options.program, options.jobs)
    elif options.overhead:
        overhead(options.program, options.jobs)
    else:
        drift = run(options.program, options.jobs, options.clients)
        raise SystemExit(0 if drift <= 0.02 else "memory is not flat")
