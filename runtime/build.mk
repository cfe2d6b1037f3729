# The programs that berthd runs: one module per upstream, each with the
# dependency versions that upstream tested. The flags follow upstream's own
# release builds; a stamp per module keeps a second run from building anything.

RUNTIME_DIR ?= bin/runtime
RUNTIME_MODULES := containerd runc cni docker buildx buildctl
RUNTIME_STAMPS := $(RUNTIME_MODULES:%=$(RUNTIME_DIR)/.%) $(RUNTIME_DIR)/docker-init

# The Engine release that moby tagged as v2.0.0-beta.24: clients compare
# against the release's number, not the module's.
ENGINE_VERSION := 29.8.1

# runtime-version MODULE,PACKAGE: the version of PACKAGE that runtime/MODULE pins.
runtime-version = $(shell $(GO) -C runtime/$1 list -m -f '{{.Version}}' $2)

# runtime-build MODULE: go build in that module, static.
runtime-build = CGO_ENABLED=0 $(GO) -C runtime/$1 build -trimpath

$(RUNTIME_DIR)/.%: runtime/%/go.mod runtime/%/go.sum runtime/build.mk
	@echo "building runtime/$*"
	@mkdir -p $(RUNTIME_DIR)
	@$(call build-$*,$(abspath $(RUNTIME_DIR)))
	@touch $@

# What `docker run --init` runs is tini, static, as in Docker's own releases. It
# is in C, and the distribution's.
TINI ?= /usr/bin/tini-static

$(RUNTIME_DIR)/docker-init: runtime/build.mk | deps
	@install -D -m 755 $(TINI) $@

# runc links libseccomp, the one C library here.
$(RUNTIME_DIR)/.runc: | deps

define build-containerd
$(call runtime-build,containerd) -tags urfave_cli_no_docs -o $1/ \
	-ldflags '-s -w -X $(CONTAINERD)/version.Version=$(call runtime-version,containerd,$(CONTAINERD))' \
	$(CONTAINERD)/cmd/containerd $(CONTAINERD)/cmd/ctr && \
$(call runtime-build,containerd) -tags 'urfave_cli_no_docs no_grpc' -o $1/ \
	-ldflags '-s -w -X $(CONTAINERD)/version.Version=$(call runtime-version,containerd,$(CONTAINERD))' \
	$(CONTAINERD)/cmd/containerd-shim-runc-v2
endef
CONTAINERD := github.com/containerd/containerd/v2

define build-runc
CGO_ENABLED=1 $(GO) -C runtime/runc build -trimpath -buildmode=pie -o $1/ \
	-tags 'seccomp netgo osusergo urfave_cli_no_docs' \
	-ldflags '-s -w -linkmode external -extldflags -static-pie' tool
endef

define build-cni
$(call runtime-build,cni) -o $1/cni/ \
	-ldflags '-s -w -X $(CNI)/pkg/utils/buildversion.BuildVersion=$(call runtime-version,cni,$(CNI))' tool
endef
CNI := github.com/containernetworking/plugins

define build-docker
$(call runtime-build,docker) -o $1/ -ldflags "-s -w \
	-X $(MOBY)/dockerversion.Version=$(ENGINE_VERSION) \
	-X $(MOBY)/dockerversion.GitCommit=$(call runtime-version,docker,$(MOBY)) \
	-X $(MOBY)/dockerversion.BuildTime= \
	-X $(BUILDKIT)/version.Version=$(call runtime-version,docker,$(BUILDKIT))" tool
endef
MOBY := github.com/moby/moby/v2
BUILDKIT := github.com/moby/buildkit

# Under the name by which the docker CLI finds its plugins.
define build-buildx
$(call runtime-build,buildx) -o $1/docker-buildx \
	-ldflags '-s -w -X $(BUILDX)/version.Version=$(call runtime-version,buildx,$(BUILDX))' tool
endef
BUILDX := github.com/docker/buildx

define build-buildctl
$(call runtime-build,buildctl) -o $1/ \
	-ldflags '-s -w -X $(BUILDKIT)/version.Version=$(call runtime-version,buildctl,$(BUILDKIT))' tool
endef
