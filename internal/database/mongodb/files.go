package mongodb

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	_ "modernc.org/sqlite" // the driver named sqlite

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// FerretDB keeps each database in one file of SQLite, named like it.
const (
	extension      = ".sqlite"
	collectionsOf  = "_ferretdb_collections" // name, table_name, settings
	sharedMemory   = "-shm"
	writeAheadLog  = "-wal"
	walHeaderBytes = 32
)

// dataFile is one database's file in one of the volumes.
type dataFile struct {
	Dir   int    `json:"dir"`  // index into the volumes
	Path  string `json:"path"` // relative to the volume
	Inode uint64 `json:"inode"`
}

// name returns the database's name.
func (f dataFile) name() string { return strings.TrimSuffix(filepath.Base(f.Path), extension) }

func (f dataFile) in(dirs []string) string { return filepath.Join(dirs[f.Dir], f.Path) }

// dataFiles lists the databases in volumes, without opening a file: in the process that holds locks on one, closing any
// descriptor of it would drop them.
func dataFiles(dirs []string) ([]dataFile, error) {
	var out []dataFile
	for i, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
			if os.IsNotExist(err) && path != dir {
				return nil
			}
			if err != nil {
				return fmt.Errorf("look for databases in %s: %w", dir, err)
			}
			if !strings.HasSuffix(path, extension) || e.IsDir() {
				return nil
			}
			info, err := e.Info()
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil {
				return err
			}
			if !info.Mode().IsRegular() {
				return fault.WithRemedy(fault.Newf(fault.Denied, "%s is not a file but leads elsewhere, so a copy of its volume would not hold it", path),
					"put the file itself into the volume")
			}
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			out = append(out, dataFile{Dir: i, Path: rel, Inode: info.Sys().(*syscall.Stat_t).Ino})
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// openFile connects to an existing file of SQLite.
func openFile(ctx context.Context, path string, busy time.Duration) (*sql.Conn, func() error, error) {
	options := url.Values{"mode": {"rw"}, "_pragma": {fmt.Sprintf("busy_timeout(%d)", busy.Milliseconds())}}
	u := url.URL{Scheme: "file", Path: path, RawQuery: options.Encode()}
	db, err := sql.Open("sqlite", u.String())
	if err != nil {
		return nil, nil, fmt.Errorf("open %s: %w", path, err)
	}
	c, err := db.Conn(ctx)
	if err != nil {
		_ = db.Close() // there is no connection that could fail to close
		return nil, nil, fmt.Errorf("open %s: %w", path, err)
	}
	return c, db.Close, nil
}

// settings is what FerretDB keeps about a collection.
type settings struct {
	Indexes []struct {
		Name string `json:"name"`
		Key  []struct {
			Field      string `json:"field"`
			Descending bool   `json:"descending"`
		} `json:"key"`
		Unique bool `json:"unique"`
	} `json:"indexes"`
	CappedSize      int64 `json:"cappedSize"`
	CappedDocuments int64 `json:"cappedDocuments"`
}

// census adds what a file holds to a catalog, as the wire would show it. It reads no document: SQLite counts rows by
// walking the smallest index.
func census(ctx context.Context, c *sql.Conn, f dataFile, bytes int64, into *database.Catalog) error {
	db := f.name()
	into.Databases = append(into.Databases, db)
	rows, err := c.QueryContext(ctx, "SELECT name, table_name, settings FROM "+collectionsOf)
	if err != nil {
		if strings.Contains(err.Error(), "no such table") {
			return fault.WithRemedy(fault.Newf(fault.Transient, "database %s is just being created, or %s is not FerretDB's", db, f.Path), "try again")
		}
		return fmt.Errorf("read the collections of %s: %w", db, err)
	}
	defer func() { _ = rows.Close() }() // rows.Err tells what matters
	type collection struct{ name, table, settings string }
	var all []collection
	for rows.Next() {
		var x collection
		if err := rows.Scan(&x.name, &x.table, &x.settings); err != nil {
			return fmt.Errorf("read the collections of %s: %w", db, err)
		}
		all = append(all, x)
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read the collections of %s: %w", db, err)
	}
	for _, x := range all {
		r := documents(db, x.name)
		quoted := `"` + strings.ReplaceAll(x.table, `"`, `""`) + `"`
		if err := c.QueryRowContext(ctx, "SELECT count(*) FROM "+quoted).Scan(&r.HighWater); err != nil {
			return fmt.Errorf("count %s: %w", r.Name, err)
		}
		r.Rows, r.Bytes = r.HighWater, bytes/int64(len(all))
		into.Relations = append(into.Relations, r)
		var s settings
		if err := json.Unmarshal([]byte(x.settings), &s); err != nil {
			return fmt.Errorf("read the settings of %s: %w", r.Name, err)
		}
		into.Objects = append(into.Objects, s.objects(r.Name)...)
	}
	return nil
}

// objects returns indexes and options as the wire shows them.
func (s settings) objects(n database.Name) (out []database.Object) {
	if s.CappedSize > 0 {
		a := map[string]string{"capped": "true", "size": strconv.FormatInt(s.CappedSize, 10)}
		if s.CappedDocuments > 0 {
			a["max"] = strconv.FormatInt(s.CappedDocuments, 10)
		}
		out = append(out, database.Object{Kind: kindOptions, Name: n.String(), Attributes: a})
	}
	for _, x := range s.Indexes {
		var parts []string
		for _, k := range x.Key {
			direction := "1"
			if k.Descending {
				direction = "-1"
			}
			parts = append(parts, fieldText(k.Field)+": "+direction)
		}
		a := map[string]string{"key": strings.Join(parts, ", ")}
		if x.Unique && x.Name != "_id_" {
			a["unique"] = "true"
		}
		out = append(out, database.Object{Kind: kindIndex, Name: indexName(n, x.Name), Attributes: a})
	}
	return out
}
