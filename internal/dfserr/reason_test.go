package dfserr

import (
	"errors"
	"testing"
)

func TestReasonThereAndBack(t *testing.T) {
	for _, r := range table {
		err := FromReason(Reason(Errorf(r.sentinel, "doing %s", "this")), "the text")
		if !errors.Is(err, r.sentinel) || err.Error() != "the text" {
			t.Errorf("%s came back as %v", r.reason, err)
		}
		for _, o := range table {
			if o.reason == r.reason && o.sentinel != r.sentinel {
				t.Errorf("reason %s is used twice", r.reason)
			}
		}
	}
	if Reason(nil) != "" || FromReason("", "x") != nil {
		t.Error("nil is not nil")
	}
	if err := FromReason(Reason(errors.New("odd")), "x"); err == nil || Sentinel(err) != nil {
		t.Error(err)
	}
}
