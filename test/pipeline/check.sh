# Checks that each entry of the log has a page with a title.
set -eu

for entry in log/*.txt; do
	page=$1/$(basename "$entry" .txt).html
	grep -q "<h1>$(head -n 1 "$entry")</h1>" "$page" || {
		echo "$page has no title" >&2
		exit 1
	}
	echo "$page is fine"
done
