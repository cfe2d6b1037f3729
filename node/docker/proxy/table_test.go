package proxy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// moduleDir is where a module's source is; the test is skipped without it.
func moduleDir(t *testing.T, in, module string) string {
	t.Helper()
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = in
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off")
	out, err := cmd.Output()
	dir := strings.TrimSpace(string(out))
	if err != nil || dir == "" {
		t.Skipf("the source of %s is not on this machine", module)
	}
	return dir
}

var parameter = regexp.MustCompile(`\{[^}]+\}`)

// covered tells whether the table has an operation.
func covered(method, path string) bool {
	op, _, err := table.find(method, parameter.ReplaceAllString(path, "x"))
	return err == nil && op.serve != nil && op.treatment != ""
}

// TestDocumented looks for the operations that the API's description has.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(moduleDir(t, ".", "github.com/moby/moby/api"), "swagger.yaml"))
	require.NoError(t, err)
	var description struct {
		Paths map[string]map[string]any
	}
	require.NoError(t, yaml.Unmarshal(text, &description))
	n := 0
	for path, methods := range description.Paths {
		for method := range methods {
			if method == "parameters" {
				continue
			}
			n++
			require.True(t, covered(strings.ToUpper(method), path), "no treatment of %s %s", method, path)
		}
	}
	require.Greater(t, n, 100)
}

// TestRouted looks for the routes that dockerd has, documented or not.
func TestRouted(t *testing.T) {
	root := filepath.Join(moduleDir(t, "../../../runtime/docker", "github.com/moby/moby/v2"), "daemon", "server", "router")
	n := 0
	require.NoError(t, filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok || len(call.Args) == 0 {
				return true
			}
			f, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			method, ok := strings.CutSuffix(strings.TrimPrefix(f.Sel.Name, "New"), "Route")
			literal, isLiteral := call.Args[0].(*ast.BasicLit)
			if !ok || !isLiteral || !strings.HasPrefix(f.Sel.Name, "New") {
				return true
			}
			path, err := strconv.Unquote(literal.Value)
			if err != nil || method == "Options" { // it answers nothing
				return true
			}
			n++
			if !covered(strings.ToUpper(method), path) {
				t.Errorf("no treatment of %s %s", method, path)
			}
			return true
		})
		return nil
	}))
	require.Greater(t, n, 100)
}

func TestFind(t *testing.T) {
	for path, want := range map[string]string{
		"/containers/json":                  "/containers/json",
		"/containers/json/json":             "/containers/{id}/json",
		"/images/a/b/c:1/json":              "/images/{image}/json",
		"/images/json":                      "/images/json",
		"/images/get":                       "/images/get",
		"/images/registry:5000/a/push/push": "/images/{image}/push",
		"/networks/":                        "/networks",
		"/containers/a%2Fb/json":            "/containers/{id}/json",
	} {
		method := http.MethodGet
		if strings.HasSuffix(path, "push") {
			method = http.MethodPost
		}
		op, _, err := table.find(method, path)
		require.NoError(t, err, path)
		require.Equal(t, want, op.path, path)
	}
	for _, path := range []string{"", "/", "//", "/containers/a/b/json", "/containers/%zz/json", "/v1.41/info", "/metrics", "/containers/x/json/more"} {
		_, _, err := table.find(http.MethodGet, path)
		require.Error(t, err, path)
	}
	// Unescaped once, and no more.
	_, params, err := table.find(http.MethodGet, "/containers/a%252Fb/json")
	require.NoError(t, err)
	require.Equal(t, []string{"a%2Fb"}, params)
}

// TestQuery keeps parameters that reach further than an operation from being
// let through by mistake.
func TestQuery(t *testing.T) {
	for _, ops := range table {
		for _, op := range ops {
			for _, name := range []string{"remote", "networkmode", "cgroupparent", "dir", "auth"} {
				require.False(t, slices.Contains(op.query, name), "%s %s", op.method, op.path)
			}
		}
	}
}
