package deployfile

import "encoding/json"

// schema is a JSON schema. Its keys are sorted when it is written.
type schema map[string]any

// defs are the definitions of a schema under way.
type defs map[string]schema

// define returns a reference to the definition of an object, which is made when it is met first.
func (d defs) define(name, doc string, declare func(o *fields)) schema {
	ref := schema{"$ref": "#/$defs/" + name}
	if _, known := d[name]; known {
		return ref
	}
	s := schema{"type": "object", "description": doc, "additionalProperties": false}
	d[name] = s // before its keys: sequences hold steps
	o := &fields{}
	declare(o)
	properties := schema{}
	var required []string
	for _, f := range o.keys {
		if f.misfit != "" {
			continue
		}
		properties[f.name] = f.describe(d)
		for _, a := range f.aliases {
			old := f.describe(d)
			old["deprecated"], old["description"] = true, "Old spelling of "+f.name+"."
			properties[a] = old
		}
		// A key with other spellings cannot be required by its name; reading the file does that.
		if f.must && len(f.aliases) == 0 {
			required = append(required, f.name)
		}
	}
	s["properties"] = properties
	if len(required) > 0 {
		s["required"] = required
	}
	return ref
}

// describe is the schema of a key.
func (f *field) describe(d defs) schema {
	s := schema{}
	for k, v := range f.value.schema(d) {
		s[k] = v
	}
	if f.blank || !f.must && f.gone == "" {
		s = schema{"anyOf": []schema{s, {"type": "null"}}}
	}
	s["description"] = f.doc
	if f.gone != "" {
		s["deprecated"] = true
	}
	return s
}

// Schema returns the JSON schema of deploy files as people write them, for editors. Old spellings are in it as deprecated.
// It comes from the same declarations that Parse reads by.
func Schema() ([]byte, error) {
	d := defs{}
	root := fileOf(&File{}).schema(d)
	root["$schema"] = "https://json-schema.org/draft/2020-12/schema"
	root["$id"] = "https://sluice.dev/schema/deploy-file.json"
	root["title"] = "Sluice deploy file"
	root["$defs"] = d
	return json.MarshalIndent(root, "", "  ")
}
