#!/bin/sh
# find.sh WORD...
#
# Which tests each WORD names, a line each, as pytest takes them: the file
# test_WORD.py, or else the test of that name, or else those that have WORD in
# their names. A path, with ::test_... behind it or not, is taken as it is.
# Fails if there is none for a WORD.
set -eu

cd "$(dirname "$0")/../.."
for word; do
    if [ -e "${word%%::*}" ]; then
        echo "$word"
        continue
    fi
    name=${word#test_}
    name=${name%.py}
    if file=$(ls tests/*/"test_$name.py" 2>/dev/null); then
        echo "$file"
        continue
    fi
    # Without what it is parametrized with.
    name=${word%%\[*}
    all=$(grep -oE '^def test_[A-Za-z0-9_]+' tests/*/test_*.py |
        sed 's/:def /::/')
    echo "$all" | grep -- "::$name\$" | sed "s/\$/${word#"$name"}/" | grep . ||
        echo "$all" | grep -- "::.*$name" || {
        echo "find.sh: there is no file tests/*/test_${word#test_}.py, and no" \
            "test with $word in its name" >&2
        exit 1
    }
done
