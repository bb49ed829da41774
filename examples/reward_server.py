"""A reward that runs elsewhere: the share of right characters, for `vision_rl.RemoteReward("http://127.0.0.1:8000")`.

    python examples/reward_server.py --port 8000

A POST of {"id", "completions", "references"} is answered with {"id", "rewards"}. It listens on the loopback only. Before
others may reach it, put a server in front that checks its callers.
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vision_rl.tasks.ocr import character_accuracy_reward


MOST_BYTES = 2**24  # of a request


class RewardHandler(BaseHTTPRequestHandler):
    timeout = 60  # seconds to wait for a caller that has sent only a part of its request

    def do_POST(self) -> None:
        try:
            length = int(self.headers["Content-Length"])
            if not 0 <= length <= MOST_BYTES:
                raise ValueError(f"a question of {length} bytes")
            asked = json.loads(self.rfile.read(length))
            rewards = character_accuracy_reward(asked["completions"], asked["references"])
            answer = json.dumps({"id": asked["id"], "rewards": rewards}).encode()
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            self.send_error(400, explain=f"{type(error).__name__}: {error}")
            return
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    ThreadingHTTPServer(("127.0.0.1", parser.parse_args().port), RewardHandler).serve_forever()
