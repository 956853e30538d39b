#!/usr/bin/env python3
"""Puts a job into the queue of pinhole's workers, and waits for its end: needs nats-py (PyPI).

    submit.py nats://localhost:4222 '{"prompt": "a red heart", "width": 512, "height": 512, "steps": 8}'

Ctrl-C cancels it.
"""

import asyncio
import json
import sys
import uuid

import nats


async def submit(address, drawing, queue="pinhole"):
    connection = await nats.connect(address)
    job = str(uuid.uuid4())
    # Listen first: the end is told once. Whoever missed it finds ID/result.json in the bucket of --results.
    ends = await connection.subscribe(f"{queue}.results.{job}")
    # An acknowledged publication: once it is there, the job is in the queue.
    await connection.jetstream().publish(f"{queue}.jobs.{job}", json.dumps(drawing).encode())
    try:
        end = json.loads((await ends.next_msg(timeout=3600)).data)
    except asyncio.CancelledError:
        # Ctrl-C: the job stops, whether it waits or a machine draws it.
        await connection.jetstream().publish(f"{queue}.cancels.{job}", b"")
        raise
    finally:
        await connection.close()
    return end


if __name__ == "__main__":
    end = asyncio.run(submit(sys.argv[1], json.loads(sys.argv[2])))
    if end["error"]:
        sys.exit(end["error"]["message"])
    print(*end["images"], sep="\n")
