package mongodb

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"go.mongodb.org/mongo-driver/v2/bson"

	"github.com/sluice-cd/sluice/internal/database"
	"github.com/sluice-cd/sluice/internal/fault"
)

// The kinds of objects of this engine.
const (
	kindOptions = "collection options"
	kindIndex   = "index"
	kindView    = "view"
	kindUser    = "user"
	kindRole    = "role"
)

// column is the only one that a collection has.
const column = "document"

// documents returns the relation of a collection.
func documents(db, collection string) database.Relation {
	return database.Relation{
		Name:    database.Name{Database: db, Relation: collection},
		Columns: []database.Column{{Name: column, Type: column, Family: database.Document}},
		Key:     []string{"_id"}, KeyUnique: true,
	}
}

// indexName names an index in a catalog, whatever the server is.
func indexName(n database.Name, index string) string { return index + " on " + n.String() }

// Catalog implements database.Server. HighWater is the number of documents, the only mark that FerretDB shows on the
// wire; the lease counts the same in the files.
func (s *server) Catalog(ctx context.Context) (database.Catalog, error) {
	info, err := s.Describe(ctx)
	if err != nil {
		return database.Catalog{}, err
	}
	c := database.Catalog{Info: info}
	if c.Databases, err = s.databases(ctx); err != nil {
		return c, err
	}
	for _, db := range c.Databases {
		if err := s.collections(ctx, db, &c); err != nil {
			return c, err
		}
	}
	if !s.ferretdb {
		if err := s.people(ctx, &c); err != nil {
			return c, err
		}
	}
	arrange(&c)
	return c, nil
}

// arrange sorts a catalog.
func arrange(c *database.Catalog) {
	slices.Sort(c.Databases)
	slices.SortFunc(c.Relations, func(a, b database.Relation) int { return strings.Compare(a.Name.String(), b.Name.String()) })
	slices.SortFunc(c.Objects, func(a, b database.Object) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), strings.Compare(a.Name, b.Name))
	})
}

// databases lists the databases that hold an application's data: local, config and mongod's own collections in admin
// belong to a server, not to what is copied.
func (s *server) databases(ctx context.Context) ([]string, error) {
	r, err := s.run(ctx, "admin", bson.D{{Key: "listDatabases", Value: 1}, {Key: "nameOnly", Value: true}})
	if err != nil {
		return nil, s.problem(err, "list the databases")
	}
	values, ok := array(r.Lookup("databases"))
	if !ok {
		return nil, fault.Newf(fault.Invalid, "list the databases: the server answered without a list")
	}
	var out []string
	for _, v := range values {
		name, _ := text(document(v), "name")
		if name == "local" || name == "config" || s.only != "" && name != s.only {
			continue
		}
		out = append(out, name)
	}
	if s.only != "" && len(out) == 0 {
		return nil, fault.WithRemedy(fault.Newf(fault.NotFound, "%s has no database %q", s.host, s.only),
			"check the name after the last slash of the URL; names are case-sensitive")
	}
	return out, nil
}

// collections adds what a database holds.
func (s *server) collections(ctx context.Context, db string, c *database.Catalog) error {
	all, err := s.list(ctx, db, bson.D{{Key: "listCollections", Value: 1}})
	if err != nil {
		return s.problem(err, "list the collections of "+db)
	}
	for _, d := range all {
		name, _ := text(d, "name")
		kind, _ := text(d, "type")
		options := document(d.Lookup("options"))
		n := database.Name{Database: db, Relation: name}
		switch {
		case strings.HasPrefix(name, "system."):
			// What the server keeps about the others; views, users and time series are listed as themselves.
		case kind == "view":
			c.Objects = append(c.Objects, database.Object{Kind: kindView, Name: n.String(), Attributes: attributes(options)})
		default:
			if err := s.collection(ctx, n, kind, options, c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *server) collection(ctx context.Context, n database.Name, kind string, options bson.Raw, c *database.Catalog) error {
	r := documents(n.Database, n.Relation)
	if a := attributes(options); len(a) > 0 {
		c.Objects = append(c.Objects, database.Object{Kind: kindOptions, Name: n.String(), Attributes: a})
	}
	if kind == "timeseries" {
		r.Skip = "it is a time series, whose buckets two versions may cut differently; comparing measurements is not built yet"
		c.Relations = append(c.Relations, r)
		return nil
	}
	size, err := s.measure(ctx, n)
	if err != nil {
		return err
	}
	r.Rows, r.HighWater, r.Bytes = size.documents, size.documents, size.bytes
	c.Relations = append(c.Relations, r)
	indexes, err := s.list(ctx, n.Database, bson.D{{Key: "listIndexes", Value: n.Relation}})
	if err != nil {
		return s.problem(err, "list the indexes of "+n.String())
	}
	for _, d := range indexes {
		name, _ := text(d, "name")
		c.Objects = append(c.Objects, database.Object{Kind: kindIndex, Name: indexName(n, name), Attributes: attributes(d, "name")})
	}
	return nil
}

// list runs a command that answers with a cursor of few documents.
func (s *server) list(ctx context.Context, db string, command bson.D) ([]bson.Raw, error) {
	cursor, err := s.client.Database(db).RunCommandCursor(undated{ctx}, command)
	if err != nil {
		return nil, err
	}
	var out []bson.Raw
	return out, cursor.All(undated{ctx}, &out)
}

// people adds users and roles. Their passwords are not compared; that a user is there, and what it may do, is.
func (s *server) people(ctx context.Context, c *database.Catalog) error {
	for _, x := range []struct{ kind, list, name, attribute string }{
		{kindUser, "usersInfo", "user", "users"}, {kindRole, "rolesInfo", "role", "roles"},
	} {
		var which any = bson.D{{Key: "forAllDBs", Value: true}}
		if x.kind == kindRole {
			which = 1
		}
		r, err := s.run(ctx, "admin", bson.D{{Key: x.list, Value: which}})
		if err != nil {
			if err := s.problem(err, "list "+x.attribute); !fault.Is(err, fault.Denied) {
				return err
			}
			c.NotComparable = append(c.NotComparable, database.Finding{Object: x.attribute, Class: "privilege missing",
				Message: "listing them needs the role userAdminAnyDatabase"})
			continue
		}
		values, ok := array(r.Lookup(x.attribute))
		if !ok {
			return fault.Newf(fault.Invalid, "list %s: the server answered without a list", x.attribute)
		}
		for _, v := range values {
			name, _ := text(document(v), x.name)
			db, _ := text(document(v), "db")
			c.Objects = append(c.Objects, database.Object{Kind: x.kind, Name: name + " on " + db,
				Attributes: attributes(document(v), x.name, "_id", "userId", "credentials", "mechanisms", "isBuiltin")})
		}
	}
	return nil
}

// meaningless tells of parts of a definition that say nothing about it: they are of the instance, or no longer mean
// anything.
func meaningless(name string) bool {
	switch name {
	case "v", "ns", "background", "uuid", "2dsphereIndexVersion", "textIndexVersion":
		return true
	}
	return false
}

// attributes brings a definition into normal form: flags that are off are as good as absent.
func attributes(d bson.Raw, without ...string) map[string]string {
	out := map[string]string{}
	elements, err := d.Elements()
	if err != nil {
		return out
	}
	for _, e := range elements {
		name, v := e.Key(), e.Value()
		if slices.Contains(without, name) || meaningless(name) {
			continue
		}
		if off, ok := v.BooleanOK(); ok && !off {
			continue
		}
		if name == "key" && v.Type == bson.TypeEmbeddedDocument {
			out[name] = keyText(document(v))
			continue
		}
		out[name] = plain(v)
	}
	return out
}

// keyText writes the fields of an index in their order; 1, 1L and 1.0 are one direction.
func keyText(d bson.Raw) string {
	elements, _ := d.Elements()
	parts := make([]string, len(elements))
	for i, e := range elements {
		parts[i] = fieldText(e.Key()) + ": " + plain(e.Value())
	}
	return strings.Join(parts, ", ")
}

// fieldText writes the name of a field so that no two definitions look the same.
func fieldText(name string) string {
	if strings.ContainsAny(name, `:, "`) {
		return strconv.Quote(name)
	}
	return name
}
