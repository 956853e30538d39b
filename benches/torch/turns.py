"""What the scripts beside this one share: runs of several ways in turn, their processor time, and a table of ratios to torch."""

import json
import os
import resource
import statistics
import subprocess
import time


def add_options(parser, runs):
    """The options of a script that measures several ways in turn: `runs` is what one of its rounds computes."""
    parser.add_argument("--pinhole", default="target/release/pinhole", help="the program")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=2, help=runs)
    parser.add_argument("--cpu", action="store_true", help="processor time")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def timed(compute, runs):
    """Seconds and processor seconds of `runs` computations, after one that is not counted: one JSON object on stdout."""
    compute()
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(runs):
        compute()
    print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}))


def processor_seconds(command):
    """What the command took of the processor, and the JSON that it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, json.loads(output)


def of_pinhole(command, options):
    """Processor seconds of `--runs` rounds of a bench, and its report. They are the difference of two processes, whose operands are
    the same and which both have one round that is not counted."""
    command = [options.pinhole, "bench", *command, "--quiet", "--json", "--threads", str(options.threads)]
    few, _ = processor_seconds([*command, "--rounds", "1"])
    more, report = processor_seconds([*command, "--rounds", str(1 + options.runs)])
    return more - few, report


def in_turn(ways, cases, options, run):
    """`run(way, case)` for each round, way and case; another way begins each time. Times by case and way."""
    times = {case: {way: [] for way in ways} for case in cases}
    for i in range(options.rounds):
        for way in ways[i % len(ways) :] + ways[: i % len(ways)]:
            for case in cases:
                times[case][way].append(run(way, case))
    return times


def report(times, operations, name, options):
    """Prints `times`, whose computations take `operations(case)`, as GFLOP/s: medians with the least and the greatest, and the median
    of the ratios to torch, round by round."""
    if options.json:
        print(json.dumps({"threads": options.threads, "runs": options.runs, "times": times}))
        return
    key = "cpu" if options.cpu else "wall"
    print(f"{options.threads} threads, {options.rounds} rounds, GFLOP/s of {'processor' if options.cpu else 'wall'} time")
    print(f"| {name} | | GFLOP/s | / torch |\n|---|---|---|---|")
    for case, ways in times.items():
        work = operations(case) / 1e9 * options.runs
        marks = [run[key] for run in ways["torch"]]
        for way, runs in ways.items():
            seconds = [run[key] for run in runs]
            ratio = statistics.median(mark / own for own, mark in zip(seconds, marks))
            speeds = sorted(work / each for each in seconds)
            spread = f"{statistics.median(speeds):.1f} ({speeds[0]:.1f} to {speeds[-1]:.1f})"
            print(f"| {case} | {way} | {spread} | {ratio:.2f} |")
