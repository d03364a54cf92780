#!/bin/sh
# Starts what this folder is for, and stops it on Ctrl-C or SIGTERM.
exec fedattn federation start "$(dirname "$0")"
