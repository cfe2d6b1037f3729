# Renders log/*.txt to public/*.html, and takes from .rendered what has not
# changed since an earlier job.
set -eu

mkdir -p public .rendered
rendered=0 kept=0
for entry in log/*.txt; do
	name=$(basename "$entry" .txt)
	page=.rendered/$(sha256sum "$entry" | cut -c 1-16).html
	if [ -e "$page" ]; then
		kept=$((kept + 1))
	else
		{
			echo "<h1>$(head -n 1 "$entry")</h1>"
			tail -n +2 "$entry" | sed 's,.*,<p>&</p>,'
		} >"$page"
		rendered=$((rendered + 1))
	fi
	cp "$page" "public/$name.html"
done
printf '\033[1m%d pages rendered, %d from the cache\033[0m\n' $rendered $kept
