package client

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"dfs/internal/dfs"
	dfsv1 "dfs/proto/dfs/v1"
)

// WriteNewFile is WriteFile for a name that must be free: it gives ErrExist when path is there already. Up to InlineMax
// bytes take a single, atomic operation; more may be seen growing.
func (c *Client) WriteNewFile(ctx context.Context, path string, data []byte, perm fs.FileMode) error {
	if len(data) <= dfs.InlineMax {
		_, err := c.create(ctx, path, modeRegular|permBits(perm), func(r *dfsv1.CreateRequest) { r.Data = data })
		return pathErr("open", path, err)
	}
	f, err := c.OpenFile(ctx, path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	f = f.WithContext(ctx)
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}
