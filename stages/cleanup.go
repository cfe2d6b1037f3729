package stages

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/errdefs"

	"gitlab.com/berth-ci/berth/container"
)

// endTimeout is how long berthd may take to end a job's processes: longer
// than it waits for one that the kernel holds on to.
const endTimeout = 2 * time.Minute

// Cleanup ends the job. It is safe twice, without a prepare, and beside a
// run that still lives. Nothing of the job runs when it returns; berthd
// removes everything that it had. Where berthd does not
// answer, the containers are ended from here, and berthd sees to the rest when it is
// back and finds the runner's directory of the job gone.
func (s *Stage) Cleanup(ctx context.Context) error {
	st, err := s.load()
	if errors.Is(err, os.ErrNotExist) {
		return nil // no prepare came as far as to ask for a berth
	}
	if err != nil {
		return err
	}
	asked, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	err = s.Berthd.End(asked, st.Job)
	if !errdefs.IsUnavailable(err) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	fmt.Fprintf(os.Stderr, "WARNING: berth: %v; it cleans up after job %s when it is back\n", err, st.Job)
	if st.Admission == nil {
		return nil
	}
	client, err := connect(st.Admission.Containerd)
	if err != nil {
		return err
	}
	defer client.Close()
	return container.Remove(ctx, client, st.Job)
}
