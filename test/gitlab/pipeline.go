package gitlab

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Pipeline is a parsed .gitlab-ci.yml, jobs in the order of the file.
type Pipeline struct {
	Stages []string
	Jobs   []PipelineJob
}

// PipelineJob is a job of a pipeline. Spec lacks what only a server knows: the
// project and the jobs that are needed, here by name.
type PipelineJob struct {
	Spec         JobSpec
	needs        []string // nil where the keyword is absent
	dependencies []string // nil where the keyword is absent
}

// ParsePipeline reads the keywords that runners see: stages, default,
// variables, image, services, script, before_script, after_script, cache,
// artifacts, dependencies, needs, tags, when, allow_failure, timeout, hooks.
// Others are refused, so that no test relies on what does not happen.
func ParsePipeline(data []byte) (*Pipeline, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("parse pipeline: %w", err)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("parse pipeline: expected keywords and jobs")
	}
	p := &Pipeline{Stages: []string{"build", "test", "deploy"}}
	var defaults keywords
	var variables variableList
	top := doc.Content[0].Content
	for i := 0; i < len(top); i += 2 {
		var err error
		switch top[i].Value {
		case "stages":
			err = top[i+1].Decode(&p.Stages)
		case "variables":
			err = top[i+1].Decode(&variables)
		case "default":
			err = top[i+1].Decode(&defaults)
		}
		if err != nil {
			return nil, fmt.Errorf("parse pipeline: %s: %w", top[i].Value, err)
		}
	}
	for i := 0; i < len(top); i += 2 {
		name := top[i].Value
		if slices.Contains([]string{"stages", "variables", "default"}, name) || strings.HasPrefix(name, ".") {
			continue
		}
		var k keywords
		if err := top[i+1].Decode(&k); err != nil {
			return nil, fmt.Errorf("parse pipeline: job %q: %w", name, err)
		}
		job, err := k.job(name, defaults, variables)
		if err == nil && !slices.Contains(p.Stages, job.Spec.Stage) {
			err = fmt.Errorf("no stage %q", job.Spec.Stage)
		}
		if err != nil {
			return nil, fmt.Errorf("parse pipeline: job %q: %w", name, err)
		}
		p.Jobs = append(p.Jobs, job)
	}
	return p, nil
}

// EnqueuePipeline makes the jobs of a pipeline, in the order of its stages.
func (s *Server) EnqueuePipeline(project *Project, ref string, p *Pipeline) ([]*Job, error) {
	id := s.NewPipeline()
	byName := map[string]*Job{}
	var jobs, earlier []*Job
	for _, stage := range p.Stages {
		var here []*Job
		for _, pj := range p.Jobs {
			if pj.Spec.Stage != stage {
				continue
			}
			spec := pj.Spec
			spec.Project, spec.Ref, spec.Pipeline = project, ref, id
			var err error
			if spec.Needs, err = named(byName, pj.needs, earlier); err != nil {
				return nil, fmt.Errorf("needs of job %q: %w", spec.Name, err)
			}
			if spec.Dependencies, err = named(byName, pj.dependencies, spec.Needs); err != nil {
				return nil, fmt.Errorf("dependencies of job %q: %w", spec.Name, err)
			}
			j, err := s.Enqueue(spec)
			if err != nil {
				return nil, err
			}
			byName[spec.Name] = j
			here = append(here, j)
		}
		jobs, earlier = append(jobs, here...), append(earlier, here...)
	}
	return jobs, nil
}

// named looks jobs up; those of the same stage that come later are unknown.
func named(byName map[string]*Job, names []string, otherwise []*Job) ([]*Job, error) {
	if names == nil {
		return slices.Clone(otherwise), nil
	}
	jobs := make([]*Job, 0, len(names))
	for _, name := range names {
		j := byName[name]
		if j == nil {
			return nil, fmt.Errorf("no job %q before this one", name)
		}
		jobs = append(jobs, j)
	}
	return jobs, nil
}

// job turns keywords into a job, taking from defaults what they lack.
func (k keywords) job(name string, defaults keywords, variables variableList) (PipelineJob, error) {
	k.inherit(defaults)
	if len(k.Script) == 0 {
		return PipelineJob{}, fmt.Errorf("it has no script")
	}
	spec := JobSpec{
		Name:         name,
		Stage:        "test",
		Variables:    slices.Concat(variables, k.Variables),
		Script:       slices.Concat(k.BeforeScript, k.Script),
		AfterScript:  k.AfterScript,
		Cache:        k.Cache,
		Tags:         k.Tags,
		When:         k.When,
		AllowFailure: k.AllowFailure,
	}
	if k.Stage != "" {
		spec.Stage = k.Stage
	}
	if k.Image != nil {
		spec.Image = Image(*k.Image)
	}
	for _, service := range k.Services {
		spec.Services = append(spec.Services, Image(service))
	}
	if k.Artifacts != nil {
		spec.Artifacts = k.Artifacts.list()
	}
	spec.Hooks = k.Hooks.list()
	if k.Timeout != "" {
		timeout, err := time.ParseDuration(strings.ReplaceAll(k.Timeout, " ", ""))
		if err != nil {
			return PipelineJob{}, fmt.Errorf("timeout: %w", err)
		}
		spec.Timeout = timeout
	}
	return PipelineJob{Spec: spec, needs: k.Needs, dependencies: k.Dependencies}, nil
}
