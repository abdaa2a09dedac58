#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Compiler launcher: ptxas-log.sh FOLDER COMMAND...  runs the command and keeps what it says on
# standard error (with -Xptxas=-v: registers, spills, shared memory) in FOLDER/SOURCE.log.
# The report is kept out of the terminal; warnings and errors are not.
set -u
folder=$1
shift
source=
for word; do
  case $word in *.cu) source=$word ;; esac
done
if [ -z "$source" ]; then exec "$@"; fi
mkdir -p "$folder"
log=$folder/$(basename "$source").log
"$@" 2>"$log.partial"
code=$?
grep -v -e '^ptxas info' -e 'bytes stack frame' -e '^ *$' "$log.partial" >&2
if [ "$code" = 0 ]; then mv "$log.partial" "$log"; else rm -f "$log.partial"; fi
exit "$code"
