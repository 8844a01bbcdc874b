# SPDX-License-Identifier: GPL-2.0
"""The queue for the processors."""

import os
import pathlib
import subprocess
import sys
import time
import unittest
from unittest import mock

TESTING = pathlib.Path(__file__).resolve().parents[2] / "tools" / "testing"
sys.path.insert(0, str(TESTING))

from harness.cores import (  # noqa: E402
    PROCESSOR,
    Place,
    Queue,
    VARIABLE,
    processor,
)


class Cores(unittest.TestCase):
    def setUp(self):
        self.queue = Queue(4)
        self.queue.start()
        patch = mock.patch.dict(os.environ, {VARIABLE: self.queue.path})
        patch.start()
        self.addCleanup(patch.stop)

    def place(self, places, seconds):
        place = Place(places, seconds)
        self.addCleanup(place.close)
        # So that the queue has heard of it before it hears of the next one.
        time.sleep(0.05)
        return place

    def granted(self, *places):
        time.sleep(0.1)
        return [place.granted() for place in places]

    def test_as_many_as_there_are(self):
        places = [self.place(1, 1) for _ in range(6)]
        self.assertEqual(self.granted(*places), [True] * 4 + [False] * 2)
        places[0].close()
        self.assertEqual(sum(self.granted(*places[1:])), 4)

    def test_the_longest_goes_first(self):
        first = self.place(4, 1)
        short, long, middle = (self.place(4, seconds) for seconds in (1, 9, 5))
        first.close()
        self.assertEqual(self.granted(short, long, middle), [False, True, False])
        long.close()
        self.assertEqual(self.granted(short, middle), [False, True])

    def test_nobody_slips_in(self):
        holder = self.place(3, 1)
        large, small = self.place(2, 9), self.place(1, 1)
        self.assertEqual(self.granted(large, small), [False, False])
        holder.close()
        self.assertEqual(self.granted(large, small), [True, True])

    def test_more_than_there_are(self):
        self.assertEqual(self.granted(self.place(9, 1)), [True])

    def test_who_goes_away_while_he_waits(self):
        holder = self.place(4, 1)
        self.place(4, 9).close()
        last = self.place(4, 1)
        holder.close()
        self.assertEqual(self.granted(last), [True])

    def test_whose_process_is_killed(self):
        script = f"""
import sys, time
sys.path.insert(0, '{TESTING}')
from harness.cores import Place
place = Place(4, 1)
place.granted(wait=True)
print(1, flush=True)
time.sleep(100)
"""
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            place = self.place(4, 1)
            self.assertEqual(self.granted(place), [False])
            process.kill()
        self.assertEqual(self.granted(place), [True])

    def test_processors(self):
        """Those who have one place share the processors evenly, and others are free to use all."""
        there = sorted(os.sched_getaffinity(0))[:2]
        with mock.patch("os.sched_getaffinity", return_value=there):
            places = [self.place(1, 1), self.place(2, 1), self.place(1, 1)]
            self.granted(*places)
            self.assertEqual([place.processor for place in places], [there[0], None, there[-1]])
            places[0].close()
            last = self.place(1, 1)
            self.granted(last)
            self.assertEqual(last.processor, there[0])
        for _ in range(2):
            with mock.patch.dict(os.environ), mock.patch("os.sched_getaffinity", return_value=there):
                del os.environ[VARIABLE]
                os.environ.pop(PROCESSOR, None)
                alone = [Place(1, 1), Place(2, 1), Place(1, 1)]
                self.assertEqual([place.processor for place in alone], [there[0], None, there[-1]])
                for place in alone:
                    place.close()
                # That of whoever has started this process, and has a place.
                os.environ[PROCESSOR] = str(there[-1])
                self.assertEqual([processor(), processor()], [there[-1]] * 2)

    def test_without_a_queue(self):
        with mock.patch.dict(os.environ):
            del os.environ[VARIABLE]
            self.assertTrue(Place(100, 1).granted())


if __name__ == "__main__":
    unittest.main()
