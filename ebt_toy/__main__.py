"The command `ebt_toy`, and `python -m ebt_toy`."
import signal, sys
from ebt_toy import cli

def main():
    "Run the command; what happens while Python shuts down changes its exit code no more"
    code = cli.main()
    exec('')      # else Python ends itself with SIGINT, should a Ctrl-C that we handled have passed through an `exec`
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return code

if __name__ == '__main__': sys.exit(main())
