"""A reward that runs elsewhere: the share of right characters, for `vision_rl.RemoteReward("http://127.0.0.1:8000")`.

    python examples/reward_server.py --port 8000

Asked with POST {"id", "completions", "references"}, it answers {"id", "rewards"}. It is for the loopback: put a server that
knows its callers in front of it before others can reach it.
"""

import argparse
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vision_rl.tasks.ocr import character_accuracy_reward


MOST_BYTES = 2**24  # of a question


class RewardHandler(BaseHTTPRequestHandler):
    timeout = 60  # seconds for a caller that begins to ask and does not go on

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
