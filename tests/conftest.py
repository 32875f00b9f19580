"A command that a test starts hears Ctrl-C, also where pytest itself runs in the background, with SIGINT ignored."
import signal

signal.signal(signal.SIGINT, signal.default_int_handler)
