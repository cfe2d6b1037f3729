package gitlab

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
)

// keywords are those of a job or of default:.
type keywords struct {
	Stage        string         `yaml:"stage"`
	Image        *imageKeyword  `yaml:"image"`
	Services     []imageKeyword `yaml:"services"`
	Variables    variableList   `yaml:"variables"`
	Script       lines          `yaml:"script"`
	BeforeScript lines          `yaml:"before_script"`
	AfterScript  lines          `yaml:"after_script"`
	Cache        caches         `yaml:"cache"`
	Artifacts    *artifactSet   `yaml:"artifacts"`
	Dependencies []string       `yaml:"dependencies"`
	Needs        []string       `yaml:"needs"`
	Tags         []string       `yaml:"tags"`
	When         string         `yaml:"when"`
	AllowFailure bool           `yaml:"allow_failure"`
	Timeout      string         `yaml:"timeout"`
	Hooks        hookSet        `yaml:"hooks"`
}

// UnmarshalYAML refuses unknown keywords.
func (k *keywords) UnmarshalYAML(node *yaml.Node) error {
	type plainKeywords keywords
	return decodeKnown(node, (*plainKeywords)(k),
		"stage", "image", "services", "variables", "script", "before_script", "after_script", "cache",
		"artifacts", "dependencies", "needs", "tags", "when", "allow_failure", "timeout", "hooks")
}

// decodeKnown decodes a mapping that may hold no other keys than known.
func decodeKnown(node *yaml.Node, into any, known ...string) error {
	for i := 0; node.Kind == yaml.MappingNode && i < len(node.Content); i += 2 {
		if key := node.Content[i].Value; key != "<<" && !slices.Contains(known, key) {
			return fmt.Errorf("line %d: keyword %q is not supported", node.Content[i].Line, key)
		}
	}
	return node.Decode(into)
}

// inherit takes from default: what the job does not say.
func (k *keywords) inherit(d keywords) {
	if k.Image == nil {
		k.Image = d.Image
	}
	if k.Services == nil {
		k.Services = d.Services
	}
	if k.BeforeScript == nil {
		k.BeforeScript = d.BeforeScript
	}
	if k.AfterScript == nil {
		k.AfterScript = d.AfterScript
	}
	if k.Cache == nil {
		k.Cache = d.Cache
	}
	if k.Artifacts == nil {
		k.Artifacts = d.Artifacts
	}
	if k.Tags == nil {
		k.Tags = d.Tags
	}
	if k.Timeout == "" {
		k.Timeout = d.Timeout
	}
}

// lines is a script: a string, or a list that may hold lists.
type lines []string

// UnmarshalYAML flattens.
func (l *lines) UnmarshalYAML(node *yaml.Node) error {
	*l = lines{}
	switch node.Kind {
	case yaml.ScalarNode:
		*l = append(*l, node.Value)
	case yaml.AliasNode:
		return l.UnmarshalYAML(node.Alias)
	case yaml.SequenceNode:
		for _, child := range node.Content {
			var inner lines
			if err := inner.UnmarshalYAML(child); err != nil {
				return err
			}
			*l = append(*l, inner...)
		}
	default:
		return fmt.Errorf("line %d: expected commands", node.Line)
	}
	return nil
}

// variableList keeps the order of the file.
type variableList []Variable

// UnmarshalYAML accepts values and the long form with value and expand.
func (l *variableList) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if node.Kind != yaml.MappingNode {
		return fmt.Errorf("line %d: expected variables", node.Line)
	}
	*l = variableList{}
	for i := 0; i < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if key.Value == "<<" {
			var merged variableList
			if err := merged.UnmarshalYAML(value); err != nil {
				return err
			}
			*l = append(merged, *l...)
			continue
		}
		v := Variable{Key: key.Value, Value: value.Value, Public: true}
		if value.Kind == yaml.MappingNode {
			long := struct {
				Value       string `yaml:"value"`
				Description string `yaml:"description"`
				Expand      bool   `yaml:"expand"`
			}{Expand: true}
			if err := decodeKnown(value, &long, "value", "description", "expand"); err != nil {
				return err
			}
			v.Value, v.Raw = long.Value, !long.Expand
		}
		*l = append(*l, v)
	}
	return nil
}

// imageKeyword is image: or an entry of services:, as a name or in full.
type imageKeyword Image

// UnmarshalYAML accepts both forms.
func (i *imageKeyword) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		i.Name = node.Value
		return nil
	}
	var long struct {
		Name       string       `yaml:"name"`
		Alias      string       `yaml:"alias"`
		Entrypoint lines        `yaml:"entrypoint"`
		Command    lines        `yaml:"command"`
		PullPolicy lines        `yaml:"pull_policy"`
		Variables  variableList `yaml:"variables"`
		Docker     struct {
			Platform string `yaml:"platform"`
			User     string `yaml:"user"`
		} `yaml:"docker"`
	}
	if err := decodeKnown(node, &long, "name", "alias", "entrypoint", "command", "pull_policy", "variables", "docker"); err != nil {
		return err
	}
	*i = imageKeyword{
		Name: long.Name, Alias: long.Alias, Entrypoint: long.Entrypoint, Command: long.Command,
		PullPolicies: long.PullPolicy, Variables: long.Variables,
	}
	i.ExecutorOptions.Docker = DockerOptions(long.Docker)
	return nil
}

// caches is one cache or a list of them.
type caches []Cache

// UnmarshalYAML accepts both.
func (c *caches) UnmarshalYAML(node *yaml.Node) error {
	nodes := []*yaml.Node{node}
	if node.Kind == yaml.SequenceNode {
		nodes = node.Content
	}
	*c = caches{}
	for _, n := range nodes {
		var one struct {
			Key       string `yaml:"key"`
			Paths     lines  `yaml:"paths"`
			Untracked bool   `yaml:"untracked"`
			Policy    string `yaml:"policy"`
			When      string `yaml:"when"`
			Fallback  lines  `yaml:"fallback_keys"`
		}
		if err := decodeKnown(n, &one, "key", "paths", "untracked", "policy", "when", "fallback_keys"); err != nil {
			return err
		}
		*c = append(*c, Cache{
			Key: one.Key, Paths: one.Paths, Untracked: one.Untracked,
			Policy: one.Policy, When: one.When, FallbackKeys: one.Fallback,
		})
	}
	return nil
}

// artifactSet is artifacts:, which is an archive and any number of reports.
type artifactSet struct {
	Name      string           `yaml:"name"`
	Paths     lines            `yaml:"paths"`
	Exclude   lines            `yaml:"exclude"`
	Untracked bool             `yaml:"untracked"`
	When      string           `yaml:"when"`
	ExpireIn  string           `yaml:"expire_in"`
	Reports   map[string]lines `yaml:"reports"`
}

func (a *artifactSet) list() []Artifact {
	var all []Artifact
	if len(a.Paths) > 0 || a.Untracked {
		all = append(all, Artifact{
			Name: a.Name, Paths: a.Paths, Exclude: a.Exclude, Untracked: a.Untracked,
			When: a.When, ExpireIn: a.ExpireIn, Type: "archive", Format: "zip",
		})
	}
	for _, kind := range []string{"dotenv", "junit"} {
		if paths, ok := a.Reports[kind]; ok {
			all = append(all, Artifact{
				Name: kind, Paths: paths, When: "always", ExpireIn: a.ExpireIn, Type: kind, Format: "gzip",
			})
		}
	}
	return all
}

// hookSet is hooks:.
type hookSet struct {
	PreGetSources  lines `yaml:"pre_get_sources_script"`
	PostGetSources lines `yaml:"post_get_sources_script"`
}

func (h hookSet) list() []Hook {
	var all []Hook
	if len(h.PreGetSources) > 0 {
		all = append(all, Hook{Name: "pre_get_sources_script", Script: h.PreGetSources})
	}
	if len(h.PostGetSources) > 0 {
		all = append(all, Hook{Name: "post_get_sources_script", Script: h.PostGetSources})
	}
	return all
}
