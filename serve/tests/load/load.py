#!/usr/bin/env python3
"""Load: jobs from many clients at once, with cancels and disconnects, and a kill in the middle. Needs Python alone.

    serve/tests/load/load.py target/release/pinhole-serve [--jobs 200] [--clients 50] [--kill]

Every accepted job has to end once, refusals have to be as many as were told, and memory has to stay: the most while the last hundred
jobs end within 2% of that while the first hundred do. All jobs are kept with their pictures. A hundred jobs of as many clients come
before, which load models and start threads. The least is what is held between jobs; it has a kilobyte more for each job that is known.
"""

import argparse
import http.client
import json
import os
import random
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time

END = ("done", "failed", "cancelled")
# Jobs before those that are measured.
WARM = 100


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

    def ended(self):
        return sum(number for name, number in self.metrics().items() if name.startswith("pinhole_jobs_ended_total"))

    def resident(self):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as status:
            return int(re.search(r"RssAnon:\s+(\d+)", status.read())[1])


def drawing(number, steps=4):
    return {"prompt": f"a star, number {number % 7}", "width": 64, "height": 64, "steps": steps, "seed": number}


class Load:
    """What clients saw."""

    def __init__(self, server):
        self.server, self.lock = server, threading.Lock()
        # What is resident, after so many jobs have ended.
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

    def run(self, jobs, clients):
        """Shares the jobs among clients, and waits until all have ended."""
        shares = [range(at, jobs, clients) for at in range(clients)]
        threads = [threading.Thread(target=self.client, args=(share, random.Random(at))) for at, share in enumerate(shares)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while any(job["status"] not in END for job in self.server.ask("GET", "/v1/jobs")[1]):
            time.sleep(0.1)

    def watch(self, stop):
        before = self.server.ended()
        while not stop.wait(0.05):
            self.resident.append((self.server.ended() - before, self.server.resident()))

    def memory(self, first, last):
        """The least and the most that was resident while these jobs ended, in MiB."""
        seen = [kibibytes / 1024 for ended, kibibytes in self.resident if first <= ended < last]
        return min(seen), max(seen)


def run(program, jobs, clients, keep):
    server = Server(program, "--queue-length", "30", "--queue-per-key", "30", "--keep", str(keep))
    Load(server).run(WARM, clients)
    before = server.metrics()
    load, stop = Load(server), threading.Event()
    threading.Thread(target=load.watch, args=(stop,), daemon=True).start()
    begun = time.monotonic()
    load.run(jobs, clients)
    stop.set()
    took = time.monotonic() - begun
    after = server.metrics()

    def more(name):
        return round(after.get(name, 0) - before.get(name, 0))

    ended = {how: more(f'pinhole_jobs_ended_total{{outcome="{how}"}}') for how in END}
    accepted = more("pinhole_jobs_accepted_total")
    known = server.ask("GET", "/v1/jobs")[1]
    assert len(set(load.accepted)) == len(load.accepted), "a job was accepted twice"
    assert keep < WARM + jobs or set(load.accepted) <= {job["id"] for job in known}, "a job is lost"
    assert accepted == sum(ended.values()), f"{accepted} accepted, {ended}"
    refused = more('pinhole_jobs_refused_total{why="queue_full"}')
    # Who left may have been refused without hearing it.
    assert load.refused <= refused <= load.refused + load.left, (load.refused, refused)
    assert ended["failed"] == 0, ended
    hundred = min(100, accepted // 2)
    (least, first), (least_last, last) = load.memory(0, hundred), load.memory(accepted - hundred, accepted)
    print(f"{jobs} jobs of {clients} clients in {took:.1f} s: {accepted} accepted, {ended}, {refused} refused, {load.left} left")
    print(f"memory: {least:.2f} to {first:.2f} MiB during the first {hundred}, {least_last:.2f} to {last:.2f} MiB during the last: "
          f"{100 * (last / first - 1):+.2f}%")
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    return abs(last / first - 1)


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
    parser.add_argument("--keep", type=int, help="jobs that the server knows [default: all]")
    parser.add_argument("--kill", action="store_true", help="kill the server in the middle, instead")
    options = parser.parse_args()
    if options.kill:
        kill(options.program, options.jobs)
    else:
        drift = run(options.program, options.jobs, options.clients, options.keep or WARM + options.jobs)
        raise SystemExit(0 if drift <= 0.02 else "memory is not flat")
