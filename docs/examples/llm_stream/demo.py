"""A client that loses its connection in the middle of an answer, and goes on where it was."""

import json
import socket
import threading
import time

import httpx
import uvicorn
from app import app


def follow(client: httpx.Client, url: str, last_id: str, words: int) -> str:
    """Print words from the stream, at most this many, and return the id of the last event."""
    with client.stream("GET", url, headers={"Last-Event-ID": last_id}) as stream:
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                last_id = value
            elif name == "data" and "word" in (data := json.loads(value)):
                print(data["word"], end=" ", flush=True)
                words -= 1
            elif name == "event" and value == "end":
                break
            if not words:
                break
    return last_id


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            time.sleep(0.01)
        with httpx.Client(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            response = client.post("/answers?question=Why?")
            job = response.json()
            print(response.status_code, job["state"])
            last_id = follow(client, job["links"]["events"], "0", words=5)
            print(f"\n-- the connection is lost after event {last_id}")
            last_id = follow(client, job["links"]["events"], last_id, words=100)
            print(f"\n-- the last event was {last_id}")
            job = client.get(job["links"]["self"]).json()
            print(job["state"], json.dumps(job["result"][:30] + "..."))
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    main()
