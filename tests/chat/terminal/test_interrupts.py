"""The first Ctrl-C is noted, the second is one, and afterwards all is as it was."""

from __future__ import annotations

import os
import signal

import pytest

from colossal_llama2.chat.terminal.interrupts import stopping_by_ctrl_c


def test_the_first_is_noted_and_the_second_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stopping_by_ctrl_c() as pressed:
        assert not pressed()
        os.kill(os.getpid(), signal.SIGINT)
        assert pressed()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
